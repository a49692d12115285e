//! HTTP/2, on both sides: streams that look like exchanges of HTTP/1 to the rest of the data plane.
//!
//! The framing is the h2 crate's. Its writes wait for windows that the other side opens, and a proxy that waits so cannot read at the
//! same time; so a write only queues here too, and who owns the exchange pushes, as with HTTP/1 (`transport::wire`). That is
//! why pingora's sessions of HTTP/2 are not used: they wait. See `docs/decisions/0007-http2.md`.

/// What a sender may send on one stream before we have read it. The window of a connection is that of all its streams: else a few that nobody
/// reads would stall all others.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 128 << 10;

/// Tiny frames are dear: the h2 crate ends a connection whose frames below 256 bytes that nobody has read yet lack more than this to that size.
/// A stream of small messages may fill its window, and so may some others beside it.
pub(crate) const SMALL_FRAME_BUDGET_BYTES: usize = 32 << 20;

/// Streams that were reset by us are remembered for a second, so that what is still on its way to them is no fault of the sender's.
pub(crate) const MAX_TRACKED_RESETS: usize = 4096;

/// Frames for streams that are forgotten nevertheless, before a connection is ended.
pub(crate) const MAX_LOCAL_ERROR_RESETS: usize = 1 << 20;

/// The window of a connection with so many streams.
pub(crate) fn connection_window_bytes(streams: u32) -> u32 {
    const MAX: u32 = (1 << 31) - 1;
    STREAM_WINDOW_BYTES.saturating_mul(streams.max(1)).min(MAX)
}

/// What the h2 crate may buffer of a stream's data; it is given only what the window takes.
pub(crate) const SEND_BUFFER_BYTES: usize = 64 << 10;

/// The longest head of an answer.
pub(crate) const RESPONSE_HEADER_BYTES_MAX: u32 = 64 << 10;
