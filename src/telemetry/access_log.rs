//! Renders one JSON line per request and writes it to standard output without blocking.
//!
//! A worker collects lines and hands them over together (`line_queue`), at the latest when the
//! caller flushes them. A separate thread writes them. If the reader of standard output is too
//! slow, lines are dropped and counted, because a log must not stop the traffic that it
//! describes.
//!
//! The module does not know which requests are logged; its caller decides that.

mod entry;
mod line;
mod line_queue;

use std::{
    cell::RefCell,
    io::{self, Write},
};

pub use crate::telemetry::access_log::entry::AccessLogEntry;
use crate::telemetry::access_log::line_queue::{LineBatch, LineQueue};

/// Size at which a batch is handed over although it is not flushed, in bytes.
const FULL_BATCH_BYTES: usize = 16 << 10;

thread_local! {
    /// Lines of the current worker that are not handed over yet.
    static BATCH: RefCell<LineBatch> = const { RefCell::new(LineBatch::new()) };
}

/// Writer of the access log, with a bounded queue and a separate thread.
#[derive(Debug)]
pub struct AccessLogWriter {
    /// `None` if every entry is discarded.
    queue: Option<LineQueue>,
}

impl AccessLogWriter {
    /// Creates a writer that writes to standard output.
    #[must_use]
    pub fn to_stdout() -> Self {
        Self::to_sink(io::stdout())
    }

    /// Creates a writer that writes whole lines to `sink` on a separate thread.
    #[must_use]
    pub fn to_sink(sink: impl Write + Send + 'static) -> Self {
        Self {
            queue: LineQueue::start(sink),
        }
    }

    /// Creates a writer that discards every entry.
    #[must_use]
    pub fn disabled() -> Self {
        Self { queue: None }
    }

    /// Returns whether entries are written at all.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.queue.is_some()
    }

    /// Returns the number of lines that were dropped since the writer was created.
    #[must_use]
    pub fn dropped_lines(&self) -> u64 {
        self.queue.as_ref().map_or(0, LineQueue::dropped_lines)
    }

    /// Adds the line of one request to the batch of the calling thread. Returns whether it is the
    /// first line of the batch; the caller must then flush the batch soon.
    ///
    /// If the queue is full, the batch is dropped and its lines are counted.
    pub fn write(&self, entry: &AccessLogEntry<'_>) -> bool {
        let Some(queue) = &self.queue else {
            return false;
        };
        BATCH.with_borrow_mut(|batch| {
            line::append(&mut batch.text, entry);
            batch.line_count += 1;
            if batch.text.len() >= FULL_BATCH_BYTES {
                queue.hand_over(batch);
            }
            batch.line_count == 1
        })
    }

    /// Hands over the lines of the calling thread.
    pub fn flush(&self) {
        if let Some(queue) = &self.queue {
            BATCH.with_borrow_mut(|batch| queue.hand_over(batch));
        }
    }
}

#[cfg(test)]
mod tests;
