//! HTTP/2, on both sides: streams that look like exchanges of HTTP/1 to the rest of the data plane.
//!
//! The framing is the h2 crate's. Its writes wait for windows that the other side opens, and a proxy that waits so cannot read at the
//! same time; so a write only queues here too, and who owns the exchange pushes, as with HTTP/1 (`transport::wire`). That is
//! why pingora's sessions of HTTP/2 are not used: they wait. See `docs/decisions/0007-http2.md`.

pub(super) mod client;
pub(super) mod connection;
mod outgoing;
pub(super) mod server;

/// What a sender may send on one stream before we have read it.
const STREAM_WINDOW: u32 = 256 << 10;

/// What a sender may send on all streams of a connection before we have read it.
const CONNECTION_WINDOW: u32 = 1 << 20;

/// What the h2 crate may buffer of a stream's data; it is given only what the window takes.
const SEND_BUFFER: usize = 64 << 10;

/// The longest head of an answer.
const HEAD_BYTES: u32 = 64 << 10;
