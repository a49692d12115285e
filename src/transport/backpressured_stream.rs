//! A stream for HTTP/2 connections, whose writes wait when too much is queued.
//!
//! HTTP/2 libraries flush the stream themselves and rely on it for backpressure. An unbounded
//! queue would remove that backpressure. This module decides only when a write waits; it does
//! not know frames or streams of HTTP/2.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::transport::queued_stream::{ConnectionHandle, QueuedStream};

/// Number of queued bytes at or above which a write first waits until the socket has accepted
/// the queue.
const MAX_QUEUED_BYTES: usize = 64 << 10;

/// A [`QueuedStream`] with a bounded queue. Flushing waits until the socket has accepted all
/// bytes.
#[derive(Debug)]
pub struct BackpressuredStream(pub QueuedStream);

impl BackpressuredStream {
    fn handle(&self) -> &Arc<ConnectionHandle> {
        self.0.handle()
    }
}

impl AsyncRead for BackpressuredStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for BackpressuredStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.handle().queued_bytes() >= MAX_QUEUED_BYTES {
            ready!(self.handle().poll_flush(context))?;
        }
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.handle().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
