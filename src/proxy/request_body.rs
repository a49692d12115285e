//! The body of a request on its way: what has been read, and what is kept of it in case it has to be sent again.
//!
//! Kept is what fits into the policy's bound. One byte more, and all of it is let go: half a body cannot be sent again.

use bytes::Bytes;
use http::HeaderMap;

use super::{client::Client, rejection::Rejection};
use crate::telemetry::reason::Reason;

/// The body of one request.
pub(super) struct RequestBody {
    kept: Vec<Bytes>,
    kept_bytes: usize,
    max_kept: usize,
    is_replayable: bool,
    is_done: bool,
    received: u64,
    max: u64,
    trailers: Option<HeaderMap>,
}

impl RequestBody {
    pub(super) fn new(client: &mut Client, max_kept: usize) -> Self {
        let is_done = client.is_body_done();
        let max = client.listener.limits.max_body_bytes;
        Self {
            kept: Vec::new(),
            kept_bytes: 0,
            max_kept,
            is_replayable: true,
            is_done,
            received: 0,
            max,
            trailers: None,
        }
    }

    /// Takes note of what was read from the client, and whether it was the last of it.
    pub(super) fn note(
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
        self.received += chunk.len() as u64;
        if self.received > self.max {
            return Err(Rejection {
                is_fatal: true,
                ..Rejection::of(Reason::BodyTooLarge)
            });
        }
        if self.is_replayable {
            self.kept_bytes += chunk.len();
            if self.kept_bytes > self.max_kept {
                self.is_replayable = false;
                self.kept = Vec::new();
            } else {
                self.kept.push(chunk.clone());
            }
        }
        Ok(())
    }

    /// What has been read so far, to be sent again.
    pub(super) fn kept(&self) -> &[Bytes] {
        &self.kept
    }

    /// The trailers, once all of it has come.
    pub(super) fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.as_ref()
    }

    /// Whether all that was read so far is still at hand.
    pub(super) fn is_replayable(&self) -> bool {
        self.is_replayable
    }

    /// Whether all of it has come and is still at hand.
    pub(super) fn is_whole(&self) -> bool {
        self.is_done && self.is_replayable
    }

    /// Whether the client has sent all of it.
    pub(super) fn is_done(&self) -> bool {
        self.is_done
    }

    /// Bytes read so far.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// From here on bytes flow both ways until somebody closes; nothing of it is kept, and there is no bound on it.
    pub(super) fn becomes_tunnel(&mut self) {
        self.is_done = false;
        self.is_replayable = false;
        self.kept = Vec::new();
        self.max = u64::MAX;
    }
}
