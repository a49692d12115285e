use std::{io, sync::mpsc::Sender};

use crate::telemetry::access_log::line_queue::*;

fn batch(text: &str) -> LineBatch {
    LineBatch {
        text: text.to_owned(),
        line_count: text.lines().count() as u64,
    }
}

/// Sink that reports each write, and waits for a permit before it returns.
struct GatedSink {
    writes: Sender<String>,
    permits: Receiver<()>,
}

impl Write for GatedSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        _ = self
            .writes
            .send(String::from_utf8_lossy(bytes).into_owned());
        _ = self.permits.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_write_has_whole_lines_and_at_most_the_atomic_size_of_a_pipe() {
    let line = |length: usize| format!("{}\n", "x".repeat(length - 1));
    let text = [1500, 1500, 1500, 5000, 10].map(line).concat();
    let lengths: Vec<usize> = atomic_parts(&text).map(str::len).collect();
    assert_eq!(lengths, [3000, 1500, 5000, 10]);
    assert_eq!(atomic_parts("").count(), 0);
}

#[test]
fn a_full_queue_drops_batches_and_counts_their_lines() {
    let ((writes, written), (permit, permits)) = (mpsc::channel(), mpsc::channel());
    let queue = LineQueue::start(GatedSink { writes, permits }).expect("a thread");
    queue.hand_over(&mut batch("first\n"));
    assert_eq!(
        written.recv(),
        Ok("first\n".to_owned()),
        "the writer is busy"
    );
    for _ in 0..MAX_QUEUED_BATCHES {
        queue.hand_over(&mut batch("queued\n"));
    }
    assert_eq!(queue.dropped_lines(), 0);
    let mut dropped = batch("one\ntwo\n");
    queue.hand_over(&mut dropped);
    assert_eq!((queue.dropped_lines(), dropped.line_count), (2, 0));
    drop(permit);
    drop(queue);
    assert_eq!(
        written.iter().count(),
        MAX_QUEUED_BATCHES,
        "a drop writes the queue"
    );
}

#[test]
fn a_failed_write_discards_its_lines_and_the_next_one_is_tried() {
    struct BrokenOnce(Vec<String>, Sender<String>);
    impl Write for BrokenOnce {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.push(String::from_utf8_lossy(bytes).into_owned());
            if self.0.len() == 1 {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            _ = self.1.send(self.0.last().cloned().unwrap_or_default());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (sender, written) = mpsc::channel();
    let queue = LineQueue::start(BrokenOnce(Vec::new(), sender)).expect("a thread");
    queue.hand_over(&mut batch("lost\n"));
    queue.hand_over(&mut batch("written\n"));
    drop(queue);
    assert_eq!(written.iter().collect::<Vec<_>>(), ["written\n"]);
}
