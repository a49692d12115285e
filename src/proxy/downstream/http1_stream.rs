//! One request of a client on an HTTP/1 connection, and its response.
//!
//! Writes only append to the queue of the connection; the owner of the request flushes it. The
//! module does not know idle timeouts and the limits of a listener; `accept::http1` does.

use std::{future::pending, sync::Arc};

use bytes::{Buf, Bytes, BytesMut};
use http::{StatusCode, header};
use pingora::protocols::http::date::get_cached_date;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    message::{RequestHead, ResponseHead, headers::Headers},
    proxy::wire::{
        events::DownstreamInterest,
        http1::{
            body_reader::{BodyProgress, BodyReader},
            body_writer::BodyWriter,
            head::{self, HeadLimits, InvalidRequestHead},
            is_persistent,
        },
        list_field::lists_token,
    },
    resilience::memory_pressure::MemoryLevel,
    telemetry::reason::Reason,
    transport::queued_stream::{ConnectionHandle, QueuedStream},
};

/// Size of a buffer for input, in bytes.
const READ_BYTES: usize = 8 << 10;

/// Minimum free space that a read offers to the socket, in bytes. A retained part of a body keeps
/// its whole buffer allocated, so small parts must share one.
const MIN_READ_BYTES: usize = READ_BYTES / 2;

/// Size of the buffer for a request head under memory pressure, in bytes.
const SMALL_HEAD_BYTES: usize = 4 << 10;

/// One request on an HTTP/1 connection, and its response.
pub(crate) struct DownstreamHttp1 {
    stream: QueuedStream,
    /// Bytes that were read and not yet used. They can contain the next requests.
    input: BytesMut,
    /// Whether the client has closed its sending side.
    is_input_ended: bool,
    head: RequestHead,
    body: BodyReader,
    writer: BodyWriter,
    keeps_alive: bool,
    body_bytes_sent: u64,
}

/// Why there is no request head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeadError {
    /// The client closed the connection.
    Closed,
    Invalid(InvalidRequestHead),
    /// The head does not fit into the buffer that memory pressure permits.
    OutOfMemory,
}

impl DownstreamHttp1 {
    /// Creates the exchange for the next request of a connection. `input` contains bytes that
    /// were read beyond the last request.
    pub(crate) fn new(stream: QueuedStream, input: BytesMut) -> Self {
        Self {
            stream,
            input,
            is_input_ended: false,
            head: RequestHead::empty(),
            body: BodyReader::Length(0),
            writer: BodyWriter::None,
            keeps_alive: false,
            body_bytes_sent: 0,
        }
    }

    /// Returns the handle that flushes and observes the connection.
    pub(crate) fn handle(&self) -> &Arc<ConnectionHandle> {
        self.stream.handle()
    }

    /// Returns whether bytes were read that are not used yet.
    pub(crate) fn has_unread_input(&self) -> bool {
        !self.input.is_empty()
    }

    /// Returns the head of the request; an empty one before it was read.
    pub(crate) fn head(&self) -> &RequestHead {
        &self.head
    }

    /// Reads the head of the request.
    ///
    /// `memory_level` returns the level of memory pressure. From the high level on, the head has
    /// a small buffer.
    ///
    /// # Errors
    /// If the client closes the connection, or the head is malformed or too large.
    pub(crate) async fn read_head(
        &mut self,
        limits: HeadLimits,
        memory_level: impl Fn() -> MemoryLevel,
    ) -> Result<(), HeadError> {
        loop {
            let taken = head::take_request(&mut self.input, limits);
            if let Some(head) = taken.map_err(HeadError::Invalid)? {
                self.accept_head(head);
                return Ok(());
            }
            if self.is_input_ended {
                return Err(HeadError::Closed);
            }
            if memory_level() < MemoryLevel::High {
                self.reserve_input();
            } else if self.input.len() < SMALL_HEAD_BYTES {
                self.input.reserve(SMALL_HEAD_BYTES - self.input.len());
            } else if self.input.len() == self.input.capacity() {
                return Err(HeadError::OutOfMemory);
            }
            self.read_input().await.map_err(|_| HeadError::Closed)?;
        }
    }

    fn accept_head(&mut self, head: RequestHead) {
        match BodyReader::from_request(&head) {
            Ok(body) => {
                self.body = body;
                self.keeps_alive = is_persistent(head.version, &head.headers);
            }
            // The request is rejected (`downstream::framing`). Nobody can say where it ends.
            Err(_) => self.keeps_alive = false,
        }
        self.head = head;
    }

    /// Returns whether the client has sent its whole request.
    pub(crate) fn is_body_done(&self) -> bool {
        self.body.is_done()
    }

    /// Returns the trailers of the request, once it has been read to its end; `None` if there are
    /// none.
    pub(crate) fn trailers(&self) -> Option<&Headers> {
        self.body.trailers()
    }

    /// Waits for the next part of the request body, for its end, or for the close of the client.
    /// Pipelined requests stay in the input.
    ///
    /// Cancel safe: a dropped call loses no bytes.
    ///
    /// # Errors
    /// [`Reason::ClientClosed`], or [`Reason::BadRequest`] for a malformed body.
    pub(crate) async fn read(
        &mut self,
        interest: DownstreamInterest,
    ) -> Result<Option<Bytes>, Reason> {
        if interest == DownstreamInterest::Close || self.is_body_done() {
            return Err(self.closed().await);
        }
        loop {
            match self.body.read(&mut self.input, self.is_input_ended) {
                Ok(BodyProgress::Data(part)) => return Ok(Some(part)),
                Ok(BodyProgress::Done) => return Ok(None),
                Ok(BodyProgress::NeedsInput) => {
                    // A tunnel may be silent for any time.
                    let handle = self.handle().clone();
                    let _awaits_body =
                        (self.writer != BodyWriter::Tunnel).then(|| handle.announce_body_wait());
                    self.fill().await?;
                }
                Err(_) if self.is_input_ended => return Err(Reason::ClientClosed),
                Err(_) => return Err(Reason::BadRequest),
            }
        }
    }

    /// Waits until the client closes its sending side.
    async fn closed(&mut self) -> Reason {
        while !self.is_input_ended {
            self.skip_empty_line();
            // The bytes of further requests are not read now, so a close behind them stays
            // unseen.
            if !self.input.is_empty() {
                return pending().await;
            }
            if let Err(reason) = self.fill().await {
                return reason;
            }
        }
        self.keeps_alive = false;
        Reason::ClientClosed
    }

    /// Discards an empty line after the request. Old clients send one after the body of a POST
    /// (RFC 9112 section 2.2).
    fn skip_empty_line(&mut self) {
        if self.body.ends_before_close() && self.input.starts_with(b"\r\n") {
            self.input.advance(2);
        }
    }

    async fn fill(&mut self) -> Result<(), Reason> {
        self.reserve_input();
        self.read_input().await
    }

    fn reserve_input(&mut self) {
        if self.input.capacity() - self.input.len() < MIN_READ_BYTES {
            self.input.reserve(READ_BYTES);
        }
    }

    /// Reads into the free space of the input.
    async fn read_input(&mut self) -> Result<(), Reason> {
        let count = self.stream.read_buf(&mut self.input).await;
        self.is_input_ended = count.map_err(|_| Reason::ClientClosed)? == 0;
        Ok(())
    }

    /// Queues the head of an interim response.
    ///
    /// # Errors
    /// If the connection is broken.
    pub(crate) fn write_interim(&mut self, head: &ResponseHead) -> Result<(), Reason> {
        let mut out = serialize_fields(head);
        out.extend_from_slice(b"\r\n");
        self.queue(&out)
    }

    /// Queues the head of the final response, with `date` if it has none, and `connection`.
    ///
    /// # Errors
    /// If its framing fields are invalid, or the connection is broken.
    pub(crate) fn write_head(&mut self, head: &ResponseHead) -> Result<(), Reason> {
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            self.body = BodyReader::until_close();
            self.writer = BodyWriter::Tunnel;
            self.keeps_alive = false;
            return self.write_interim(head);
        }
        let writer = BodyWriter::from_response(&self.head.method, head);
        self.writer = writer.map_err(|_| Reason::InternalError)?;
        self.keeps_alive &= self.writer != BodyWriter::Tunnel;
        let mut out = serialize_fields(head);
        if !head.headers.contains_key(header::DATE) {
            out.extend_from_slice(b"Date: ");
            out.extend_from_slice(get_cached_date().as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(if self.keeps_alive {
            b"Connection: keep-alive\r\n\r\n"
        } else {
            b"Connection: close\r\n\r\n"
        });
        self.queue(&out)
    }

    /// Queues a part of the response body.
    ///
    /// # Errors
    /// If the body is longer than the head announces, or the connection is broken.
    pub(crate) fn write(&mut self, part: &[u8]) -> Result<(), Reason> {
        let written = self.writer.write(part);
        let out = written.map_err(|_| Reason::ClientClosed)?;
        if self.writer != BodyWriter::None {
            self.body_bytes_sent += part.len() as u64;
        }
        self.queue(&out)
    }

    /// Queues the end of the response. The trailers are dropped if the response is not chunked,
    /// or the client does not accept them (RFC 9110 section 6.5.1).
    ///
    /// # Errors
    /// If the body is shorter than the head announces, or the connection is broken.
    pub(crate) fn finish(&mut self, trailers: Option<&Headers>) -> Result<(), Reason> {
        let accepted =
            trailers.filter(|_| lists_token(&self.head.headers, &header::TE, "trailers"));
        let end = self.writer.finish(accepted);
        let end = end.map_err(|_| Reason::ClientClosed)?;
        self.queue(&end)
    }

    /// Appends bytes to the queue of the connection, which never waits.
    fn queue(&mut self, bytes: &[u8]) -> Result<(), Reason> {
        if bytes.is_empty() {
            return Ok(());
        }
        let written = self.stream.queue(bytes);
        written.map_err(|_| Reason::ClientClosed)
    }

    /// Returns the number of bytes of the response body that were queued.
    pub(crate) fn body_bytes_sent(&self) -> u64 {
        self.body_bytes_sent
    }

    /// Returns whether the connection can carry another request.
    pub(crate) fn keeps_alive(&self) -> bool {
        self.keeps_alive
    }

    /// Closes the connection after this response.
    pub(crate) fn close_after_response(&mut self) {
        self.keeps_alive = false;
    }

    /// Discards the bytes that were read and not used, with their buffer.
    pub(crate) fn discard_input(&mut self) {
        self.input = BytesMut::new();
    }

    /// Closes the sending side, after all queued output.
    pub(crate) async fn shutdown(&mut self) {
        // A broken connection is closed already.
        _ = self.stream.shutdown().await;
    }

    /// Returns the connection with the bytes that were read beyond this request.
    pub(crate) fn into_parts(mut self) -> (QueuedStream, BytesMut) {
        self.skip_empty_line();
        if self.input.is_empty() {
            // An idle connection keeps no buffer.
            self.input = BytesMut::new();
        }
        (self.stream, self.input)
    }
}

/// Serializes the status line and the fields of a head, without the empty line that ends it.
fn serialize_fields(head: &ResponseHead) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 << 10);
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(head.status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.reason_phrase().as_bytes());
    out.extend_from_slice(b"\r\n");
    head.headers.write_http1(&mut out);
    out
}
