//! The client's side of a request: its stream, the check of its framing, and the body on its way in.

pub(crate) mod client;
pub(crate) mod framing;
pub(crate) mod http2;
pub(crate) mod request_body;
pub(crate) mod task;
