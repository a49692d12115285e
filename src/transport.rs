//! Connections below HTTP: sockets, TLS, and writes that queue.
//!
//! Both the data plane and the health checks speak through it, so that a check of an endpoint goes the same way as its requests.
//!
//! - `socket`: TCP, or a socket in the file system.
//! - `tls`: a session of rustls between the socket and its user. It does no input or output of its own.
//! - `wire`: the handle of a connection whose writes queue, and the stream that a session of HTTP/1 owns.
//! - `certificate`: whose one is, and until when.
//! - `paced`: the same stream for HTTP/2, whose writes wait for the socket.

pub mod backpressured_stream;
pub mod certificate;
pub mod queued_stream;
pub mod socket;
pub mod tls;
