//! A bounded queue of batches of lines, and the thread that writes them.
//!
//! The thread wakes once per batch. A batch that finds the queue full is dropped, and its lines
//! are counted. The module does not know what a line contains.

use std::{
    io::Write,
    mem,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender},
    },
    thread,
    time::Duration,
};

/// Maximum number of batches that wait to be written. A batch has 16 KiB and at most one more line.
const MAX_QUEUED_BATCHES: usize = 256;

/// Maximum number of bytes of one write. Linux writes up to `PIPE_BUF` bytes to a pipe
/// atomically. Another writer of the same pipe therefore cannot split a line, unless the line
/// alone exceeds this size.
const MAX_WRITE_BYTES: usize = 4096;

/// Maximum time for which the end of the process waits for queued lines.
const MAX_FINAL_FLUSH: Duration = Duration::from_secs(1);

/// Lines that are handed over together.
#[derive(Debug)]
pub(super) struct LineBatch {
    pub(super) text: String,
    pub(super) line_count: u64,
}

/// Queue with its writing thread. A drop writes what is queued, for at most one second.
#[derive(Debug)]
pub(super) struct LineQueue {
    /// `None` only during the drop.
    sender: Option<SyncSender<String>>,
    dropped_lines: AtomicU64,
    /// Its sender is dropped when the thread ends. The lock is never contended.
    end: parking_lot::Mutex<Receiver<()>>,
}

impl LineBatch {
    pub(super) const fn new() -> Self {
        Self {
            text: String::new(),
            line_count: 0,
        }
    }
}

impl LineQueue {
    /// Starts the thread that writes to `sink`. Returns `None`, after a log line, if the system
    /// provides no thread.
    pub(super) fn start(sink: impl Write + Send + 'static) -> Option<Self> {
        let (sender, batches) = mpsc::sync_channel(MAX_QUEUED_BATCHES);
        let (end_sender, end) = mpsc::channel();
        let started = thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || {
                write_batches(&batches, sink);
                drop(end_sender);
            });
        if let Err(error) = started {
            tracing::error!("there is no access log: {error}");
            return None;
        }
        Some(Self {
            sender: Some(sender),
            dropped_lines: AtomicU64::new(0),
            end: parking_lot::Mutex::new(end),
        })
    }

    /// Returns the number of lines that were dropped.
    pub(super) fn dropped_lines(&self) -> u64 {
        self.dropped_lines.load(Ordering::Relaxed)
    }

    /// Queues a batch and empties it, or drops and counts its lines.
    pub(super) fn hand_over(&self, batch: &mut LineBatch) {
        if batch.line_count == 0 {
            return;
        }
        let capacity = batch.text.len();
        let text = mem::replace(&mut batch.text, String::with_capacity(capacity));
        let line_count = mem::take(&mut batch.line_count);
        let is_queued = self
            .sender
            .as_ref()
            .is_some_and(|sender| sender.try_send(text).is_ok());
        if !is_queued {
            self.dropped_lines.fetch_add(line_count, Ordering::Relaxed);
        }
    }
}

impl Drop for LineQueue {
    fn drop(&mut self) {
        self.sender = None;
        // The thread ends when it has written everything. A reader that does not read must not
        // hold up the end of the process.
        let ended = self.end.lock().recv_timeout(MAX_FINAL_FLUSH);
        if ended == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("the end of the access log is lost, because nothing reads it");
        }
    }
}

/// Writes batches until the queue is closed and empty. A write that fails discards its lines.
fn write_batches(batches: &Receiver<String>, mut sink: impl Write) {
    for batch in batches {
        for lines in atomic_parts(&batch) {
            // There is nowhere to report it; the next write may succeed.
            _ = sink.write_all(lines.as_bytes());
        }
        _ = sink.flush();
    }
}

/// Splits a batch into parts of whole lines, each as long as one write may be.
fn atomic_parts(batch: &str) -> impl Iterator<Item = &str> {
    let mut rest = batch;
    std::iter::from_fn(move || {
        let limit = rest.len().min(MAX_WRITE_BYTES);
        let last_end = rest.as_bytes()[..limit].iter().rposition(is_line_end);
        // A longer line is written alone.
        let end = last_end.or_else(|| rest.as_bytes().iter().position(is_line_end))?;
        let (part, following) = rest.split_at(end + 1);
        rest = following;
        Some(part)
    })
}

fn is_line_end(byte: &u8) -> bool {
    *byte == b'\n'
}

#[cfg(test)]
mod tests;
