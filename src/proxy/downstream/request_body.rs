//! The body of a request on its way: what has been read, and what is kept of it in case it has to be sent again.
//!
//! Kept is what fits into the policy's bound. One byte more, and all of it is let go: half a body cannot be sent again.

use bytes::Bytes;
use http::HeaderMap;

use crate::{
    proxy::{downstream::client::Client, request::rejection::Rejection},
    telemetry::reason::Reason,
};

/// The body of one request.
pub(crate) struct RequestBody {
    buffered: Vec<Bytes>,
    buffered_bytes: usize,
    max_buffered_bytes: usize,
    is_replayable: bool,
    is_done: bool,
    received_bytes: u64,
    max_bytes: u64,
    trailers: Option<HeaderMap>,
}

impl RequestBody {
    pub(crate) fn new(client: &mut Client, max_buffered_bytes: usize) -> Self {
        let is_done = client.is_body_done();
        let max_bytes = client.listener.limits.max_body_bytes;
        Self {
            buffered: Vec::new(),
            buffered_bytes: 0,
            max_buffered_bytes,
            is_replayable: true,
            is_done,
            received_bytes: 0,
            max_bytes,
            trailers: None,
        }
    }

    /// Takes note of what was read from the client, and whether it was the last of it.
    pub(crate) fn record_chunk(
        &mut self,
        chunk: Option<&Bytes>,
        is_last: bool,
        trailers: Option<HeaderMap>,
    ) -> Result<(), Rejection> {
        self.is_done = is_last;
        self.trailers = trailers.or_else(|| self.trailers.take());
        let Some(chunk) = chunk.filter(|chunk| !chunk.is_empty()) else {
            return Ok(());
        };
        self.received_bytes += chunk.len() as u64;
        if self.received_bytes > self.max_bytes {
            return Err(Rejection {
                is_fatal: true,
                ..Rejection::from_reason(Reason::BodyTooLarge)
            });
        }
        if self.is_replayable {
            self.buffered_bytes += chunk.len();
            if self.buffered_bytes > self.max_buffered_bytes {
                self.is_replayable = false;
                self.buffered = Vec::new();
            } else {
                self.buffered.push(chunk.clone());
            }
        }
        Ok(())
    }

    /// What has been read so far, to be sent again.
    pub(crate) fn buffered(&self) -> &[Bytes] {
        &self.buffered
    }

    /// The trailers, once all of it has come.
    pub(crate) fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.as_ref()
    }

    /// Whether all that was read so far is still at hand.
    pub(crate) fn is_replayable(&self) -> bool {
        self.is_replayable
    }

    /// Whether all of it has come and is still at hand.
    pub(crate) fn is_fully_buffered(&self) -> bool {
        self.is_done && self.is_replayable
    }

    /// Whether the client has sent all of it.
    pub(crate) fn is_done(&self) -> bool {
        self.is_done
    }

    /// Bytes read so far.
    pub(crate) fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// From here on bytes flow both ways until somebody closes; nothing of it is kept, and there is no bound on it.
    pub(crate) fn switch_to_tunnel(&mut self) {
        self.is_done = false;
        self.is_replayable = false;
        self.buffered = Vec::new();
        self.max_bytes = u64::MAX;
    }
}
