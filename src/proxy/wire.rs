//! Mechanisms below a message that both sides of the proxy share.
//!
//! They are events, header names, HTTP/2 limits, message framing and send queues. They know
//! neither routes nor policies.

pub(crate) mod events;
pub(crate) mod header_names;
pub(crate) mod http2;
pub(crate) mod message_boundary;
pub(crate) mod send_queue;
