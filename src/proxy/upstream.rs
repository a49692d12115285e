//! The backend's side of a request: workers, connection pools, new connections and streams.
//!
//! The modules know endpoints and connections. They do not know routes, retries or clients.

pub(crate) mod connect;
mod http1_stream;
pub(crate) mod http2;
pub(crate) mod http2_stream;
pub(crate) mod pool;
pub(crate) mod request_head;
pub(crate) mod stream;
pub mod worker;
