//! The stream of a connection for HTTP/2, which does its own pushing: a write waits while too much is queued.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::transport::queued_stream::{ConnectionHandle, QueuedStream};

/// What may be queued before a write waits for the socket.
const MAX_QUEUED_BYTES: usize = 64 << 10;

/// A stream whose writes wait for the socket.
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
