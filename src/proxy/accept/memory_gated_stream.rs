//! A stream of an HTTP/2 connection that is read slowly while memory pressure is critical.
//!
//! The windows of HTTP/2 permit a client to send far more than it has sent so far. The kernel
//! then holds the client back instead. The module does not know frames or streams of HTTP/2.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    clock,
    proxy::upstream::worker::Worker,
    resilience::memory_pressure::MemoryLevel,
    telemetry::memory_measure::MemoryMeasure,
    transport::{backpressured_stream::BackpressuredStream, queued_stream::QueuedStream},
};

/// Time after which a paused connection looks at the level of memory pressure again.
const PAUSE: Duration = Duration::from_millis(50);

/// Stream whose reads pause while memory pressure is critical.
pub(crate) struct MemoryGatedStream {
    stream: BackpressuredStream,
    worker: Arc<Worker>,
    pause: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl MemoryGatedStream {
    pub(crate) fn new(stream: QueuedStream, worker: Arc<Worker>) -> Self {
        Self {
            stream: BackpressuredStream(stream),
            worker,
            pause: None,
        }
    }

    /// Waits until the next read is permitted. While memory pressure is critical, that is one read
    /// after each pause, so that clients which send or read make progress. If the whole budget is
    /// used, it is none.
    fn poll_gate(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let has_paused = match &mut self.pause {
                Some(pause) => {
                    ready!(pause.as_mut().poll(context));
                    self.pause = None;
                    true
                }
                None => false,
            };
            // A connection that was shut down must see its end, so that it releases its memory. One
            // that received GOAWAY is still gated, because its client may still send.
            if self.worker.memory_level() < MemoryLevel::Critical
                || self.stream.0.handle().is_shut_down()
                || (has_paused && !self.worker.is_memory_exhausted())
            {
                return Poll::Ready(());
            }
            self.worker.state.memory.record(MemoryMeasure::PauseRead);
            self.pause = Some(Box::pin(clock::sleep(PAUSE)));
        }
    }
}

impl AsyncRead for MemoryGatedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_gate(context));
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for MemoryGatedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
