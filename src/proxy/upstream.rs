//! The backend's side of a request: workers, connection pools, new connections and streams.

pub(crate) mod connect;
pub(crate) mod http2;
pub(crate) mod pool;
pub(crate) mod request_head;
pub(crate) mod stream;
pub mod worker;
