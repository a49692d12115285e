//! Limits of HTTP/2 connections, the same for clients and for backends.
//!
//! The h2 crate does the framing. pingora's HTTP/2 sessions are not used: their writes wait for
//! the peer's window, and a proxy that waits there cannot read. Here a write only appends to a
//! [`SendQueue`](crate::proxy::wire::send_queue::SendQueue), and the owner of the request
//! flushes it. `docs/decisions/0007-http2.md` gives the reasons.
//!
//! The values bound the memory of a connection. The module does not decide how many streams a
//! connection carries.

/// Bytes that a peer may send on one stream before the proxy has read them.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 128 << 10;

/// Budget of a connection for the overhead of small DATA frames, in bytes.
///
/// h2 charges a frame below 256 bytes with the difference to 256, and refunds it once the frame
/// is read. It closes a connection that exhausts the budget. The budget lets one stream fill
/// its window with frames of one byte, or five streams with the smallest gRPC messages.
pub(crate) const SMALL_FRAME_BUDGET_BYTES: usize = 32 << 20;

/// Number of streams of a connection that h2 remembers for one second after the proxy has reset
/// them.
///
/// Frames in flight for such a stream are ignored. For a forgotten stream they would count as
/// an error of the peer.
pub(crate) const MAX_TRACKED_RESETS: usize = 4096;

/// Number of streams that h2 may reset because of errors of the peer, over the lifetime of a
/// connection. It then closes the connection.
///
/// The number is high, because frames for a forgotten stream count although the peer made no
/// error.
pub(crate) const MAX_LOCAL_ERROR_RESETS: usize = 1 << 20;

/// Returns the receive window of a connection that holds `streams` full stream windows, in
/// bytes. It is at most 2^31 - 1 (RFC 9113 section 6.9.1).
///
/// With a smaller window, a few streams whose data is not read would block all others.
pub(crate) fn connection_window_bytes(streams: u32) -> u32 {
    const MAX: u32 = (1 << 31) - 1;
    STREAM_WINDOW_BYTES.saturating_mul(streams.max(1)).min(MAX)
}

/// Maximum number of bytes that h2 buffers for sending on one stream. It receives only what the
/// window of the stream accepts.
pub(crate) const SEND_BUFFER_BYTES: usize = 64 << 10;

/// Maximum size of a response head from a backend, in bytes, counted as a header list.
pub(crate) const RESPONSE_HEADER_BYTES_MAX: u32 = 64 << 10;
