//! The body of a request: its limit, and the part that is retained for a retry.
//!
//! Chunks are retained up to the policy's bound. A body that exceeds the bound by one byte is
//! released completely, because a part of a body cannot be sent again. The module does not read
//! from the client, and does not decide whether a retry follows.

use std::mem;

use bytes::Bytes;

use crate::{
    message::headers::Headers,
    proxy::{downstream::client::Client, request::rejection::Rejection},
    telemetry::reason::Reason,
};

/// Progress of one request body, and its retained chunks.
pub(crate) struct RequestBody {
    /// Chunks received so far; empty once the body is not replayable.
    buffered: Vec<Bytes>,
    buffered_bytes: usize,
    max_buffered_bytes: usize,
    /// Whether all received chunks are retained.
    is_replayable: bool,
    is_done: bool,
    received_bytes: u64,
    /// Maximum size of the body, in bytes. A larger body is rejected.
    max_bytes: u64,
    trailers: Option<Headers>,
}

impl RequestBody {
    /// Creates the state of a body of which nothing has been read. At most `max_buffered_bytes`
    /// are retained.
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

    /// Records a chunk that was read from the client; `None` is the end of the body.
    ///
    /// # Errors
    /// A fatal rejection if the body exceeds the limit of the listener.
    pub(crate) fn record_chunk(
        &mut self,
        client: &mut Client,
        chunk: Option<&Bytes>,
    ) -> Result<(), Rejection> {
        // The session reports the end with the last chunk or after it.
        self.is_done = chunk.is_none() || client.is_body_done();
        self.trailers = client.take_trailers().or_else(|| self.trailers.take());
        let Some(chunk) = chunk.filter(|chunk| !chunk.is_empty()) else {
            return Ok(());
        };
        self.received_bytes += chunk.len() as u64;
        if self.received_bytes > self.max_bytes {
            return Err(Rejection::fatal(Reason::BodyTooLarge));
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

    /// Releases the retained chunks. Returns whether there were any.
    pub(crate) fn release(&mut self) -> bool {
        self.is_replayable &= self.buffered_bytes == 0;
        self.max_buffered_bytes = 0;
        !mem::take(&mut self.buffered).is_empty()
    }

    /// Returns the retained chunks in order. They are the whole body received so far if
    /// [`Self::is_replayable`] is true.
    pub(crate) fn buffered(&self) -> &[Bytes] {
        &self.buffered
    }

    /// Returns the trailers; `None` until they arrive, or if there are none.
    pub(crate) fn trailers(&self) -> Option<&Headers> {
        self.trailers.as_ref()
    }

    /// Returns whether all chunks received so far are retained.
    pub(crate) fn is_replayable(&self) -> bool {
        self.is_replayable
    }

    /// Returns whether the body is complete and all of it is retained.
    pub(crate) fn is_fully_buffered(&self) -> bool {
        self.is_done && self.is_replayable
    }

    /// Returns whether the client has sent the whole body.
    pub(crate) fn is_done(&self) -> bool {
        self.is_done
    }

    /// Returns the number of bytes received so far, without framing.
    pub(crate) fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// Counts bytes of the client's side of a tunnel.
    pub(crate) fn record_tunnel_bytes(&mut self, bytes: &Bytes) {
        self.received_bytes += bytes.len() as u64;
    }

    /// Continues as the client's side of a tunnel, which ends when one side closes. Nothing is
    /// retained, and there is no size limit.
    pub(crate) fn switch_to_tunnel(&mut self) {
        self.is_done = false;
        self.is_replayable = false;
        self.buffered = Vec::new();
        self.max_bytes = u64::MAX;
    }
}
