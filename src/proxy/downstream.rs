//! The client's side of a request: its stream, the checks of its framing, and its body.
//!
//! It hides whether a client speaks HTTP/1 or HTTP/2. It does not know backends or retries;
//! [`task`] only owns the data that the stages of a request share.

pub(crate) mod client;
pub(crate) mod framing;
pub(crate) mod http1_stream;
pub(crate) mod http2;
pub(crate) mod request_body;
pub(crate) mod task;
