//! Mechanisms below a message that both sides of the proxy share.
//!
//! They are events, header names, HTTP/1 messages, HTTP/2 limits, message framing, send queues and
//! received bodies. They know neither routes nor policies.

pub(crate) mod events;
pub(crate) mod header_names;
pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod list_field;
pub(crate) mod message_boundary;
pub(crate) mod received_body;
pub(crate) mod send_queue;
pub(crate) mod stall_counter;
pub(crate) mod trailer_fields;
