//! The transport layer below HTTP: sockets, TLS, and streams that queue writes.
//!
//! It decides how bytes reach an endpoint or a client. Both the data plane and the active
//! health checks use it, so that a check takes the same path as a request. It knows no HTTP, no
//! policy decisions and no timeouts.
//!
//! - [`connect`]: a new connection to an endpoint.
//! - [`socket`]: a connected TCP or Unix socket.
//! - [`tls`]: a rustls session between the socket and its user. It performs no I/O itself.
//! - [`queued_stream`]: a connection whose writes are queued: the stream that an HTTP/1 session
//!   owns, and the handle that flushes it.
//! - [`backpressured_stream`]: the same stream for HTTP/2, whose writes wait for the socket
//!   when much is queued.
//! - [`certificate`]: the identity and the expiry time of a certificate.

pub mod backpressured_stream;
pub mod certificate;
pub mod connect;
pub mod queued_stream;
pub mod socket;
pub mod tls;
