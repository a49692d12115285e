//! What both sides of the proxy share below a message: events, framing and queues.

pub(crate) mod events;
pub(crate) mod header_names;
pub(crate) mod http2;
pub(crate) mod message_boundary;
pub(crate) mod send_queue;
