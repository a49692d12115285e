//! Counts the HTTP/2 streams of a connection that wait for their client.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

/// State of one stream, and the number of its connection that it contributes to.
#[derive(Debug)]
pub(crate) struct StallCounter {
    stalled_streams: Arc<AtomicU32>,
    is_stalled: bool,
}

impl StallCounter {
    /// Creates the state of a stream that does not wait.
    pub(crate) fn new(stalled_streams: Arc<AtomicU32>) -> Self {
        Self {
            stalled_streams,
            is_stalled: false,
        }
    }

    /// Records whether the stream waits for its client to send or to read.
    pub(crate) fn set_stalled(&mut self, is_stalled: bool) {
        if is_stalled == self.is_stalled {
            return;
        }
        self.is_stalled = is_stalled;
        if is_stalled {
            self.stalled_streams.fetch_add(1, Ordering::Relaxed);
        } else {
            self.stalled_streams.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for StallCounter {
    fn drop(&mut self) {
        self.set_stalled(false);
    }
}
