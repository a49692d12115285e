//! Names what the sidecar does against memory pressure, for its metric.
//!
//! The module does not know when a measure is taken. Rejected requests count under their reason.

use crate::{resilience::memory_pressure::WaitKind, telemetry::label::counted_labels};

counted_labels! {
    /// Measure against memory pressure.
    MemoryMeasure {
        /// An idle connection is closed.
        CloseIdle = "idle_closed",
        /// A connection with an incomplete TLS handshake is closed.
        CloseHandshake = "handshake_closed",
        /// A connection with an incomplete request head is closed.
        CloseRequestHead = "request_head_closed",
        /// A connection with an incomplete request body is closed.
        CloseRequestBody = "request_body_closed",
        /// A connection whose client does not read the response is closed.
        CloseResponse = "response_closed",
        /// An HTTP/2 connection is closed whose streams all wait for the client.
        CloseStreams = "streams_closed",
        /// An HTTP/2 connection is refused before its first stream.
        RefuseConnection = "connection_refused",
        /// The retained part of a request body is released, so the request cannot be retried.
        ReleaseBody = "body_released",
        /// Half of a cache of responses is released.
        ReleaseCache = "cache_released",
        /// A listener waits before it accepts the next connection.
        PauseAccept = "accept_paused",
        /// An HTTP/2 stream is refused before it is processed.
        RefuseStream = "stream_refused",
        /// An HTTP/2 connection waits before it reads more.
        PauseRead = "read_paused",
    }
}

impl MemoryMeasure {
    /// Returns the measure that closes a connection.
    #[must_use]
    pub fn close(waits_for: WaitKind) -> Self {
        match waits_for {
            WaitKind::Idle => Self::CloseIdle,
            WaitKind::Handshake => Self::CloseHandshake,
            WaitKind::RequestHead => Self::CloseRequestHead,
            WaitKind::RequestBody => Self::CloseRequestBody,
            WaitKind::Response => Self::CloseResponse,
            WaitKind::Streams => Self::CloseStreams,
        }
    }
}
