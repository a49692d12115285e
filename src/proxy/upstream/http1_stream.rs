//! Request and response on an HTTP/1 connection of its own.
//!
//! Writes only append to the queue of the connection; its owner flushes it. The module does not
//! know the endpoint, and does not decide whether the connection is reused.

use bytes::BytesMut;
use http::{Method, StatusCode, header};
use tokio::io::AsyncReadExt;

use crate::{
    message::{ResponseHead, framing::BodyFraming, headers::Headers},
    proxy::{
        upstream::request_head::UpstreamRequestHead,
        wire::{
            events::StreamError,
            http1::{
                InvalidMessage,
                body_reader::{BodyProgress, BodyReader},
                body_writer::BodyWriter,
                head, is_persistent,
            },
        },
    },
    transport::queued_stream::QueuedStream,
};

/// Free space that a read offers to the socket, in bytes.
const READ_BYTES: usize = 16 << 10;

/// One exchange on an HTTP/1 connection.
pub(crate) struct Http1Stream {
    stream: QueuedStream,
    /// Bytes that were read and not yet used.
    input: BytesMut,
    /// Whether the peer has closed its sending side.
    is_input_ended: bool,
    request_method: Method,
    requests_upgrade: bool,
    writer: BodyWriter,
    /// Response head that was read last, which can be interim.
    head: Option<Box<ResponseHead>>,
    /// Reader of the response body; `None` before the final head.
    body: Option<BodyReader>,
    was_upgraded: bool,
}

impl Http1Stream {
    /// Creates an exchange on a connection without unread input.
    pub(crate) fn new(stream: QueuedStream) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            is_input_ended: false,
            request_method: Method::GET,
            requests_upgrade: false,
            writer: BodyWriter::Length(0),
            head: None,
            body: None,
            was_upgraded: false,
        }
    }

    /// Returns the response head that was read last, which can be interim.
    pub(crate) fn head(&self) -> Option<&ResponseHead> {
        self.head.as_deref()
    }

    /// Returns whether the peer has switched to another protocol.
    pub(crate) fn was_upgraded(&self) -> bool {
        self.was_upgraded
    }

    /// Returns whether the response has been read to its end.
    pub(crate) fn is_body_done(&self) -> bool {
        self.body.as_ref().is_some_and(BodyReader::is_done)
    }

    /// Returns the trailers of the response, once it has been read to its end; `None` if there
    /// are none.
    pub(crate) fn trailers(&self) -> Option<&Headers> {
        self.body.as_ref().and_then(BodyReader::trailers)
    }

    /// Queues the request head.
    ///
    /// # Errors
    /// If its framing fields are invalid, or the connection is broken.
    pub(crate) fn write_head(
        &mut self,
        head: &UpstreamRequestHead<'_>,
    ) -> Result<(), InvalidMessage> {
        self.writer = BodyWriter::from_request(head.framing);
        self.request_method = head.method.clone();
        self.requests_upgrade = head.headers.contains_key(header::UPGRADE);
        self.queue(&head.to_http1())
    }

    /// Queues a part of the request body.
    ///
    /// # Errors
    /// If the body is longer than the head announces, or the connection is broken.
    pub(crate) fn write(&mut self, part: &[u8]) -> Result<(), InvalidMessage> {
        let out = self.writer.write(part)?;
        self.queue(&out)
    }

    /// Queues the end of the request. A body that is not chunked drops the trailers.
    ///
    /// # Errors
    /// If the body is shorter than the head announces, or the connection is broken.
    pub(crate) fn finish(&mut self, trailers: Option<&Headers>) -> Result<(), InvalidMessage> {
        let end = self.writer.finish(trailers)?;
        self.queue(&end)
    }

    /// Appends bytes to the queue of the connection, which never waits.
    fn queue(&mut self, bytes: &[u8]) -> Result<(), InvalidMessage> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.stream.queue(bytes).map_err(|_| InvalidMessage)
    }

    /// Makes the stream write bytes without framing from now on.
    pub(crate) fn switch_to_tunnel(&mut self) {
        self.writer = BodyWriter::Tunnel;
    }

    /// Reads the next response head.
    ///
    /// Cancel safe: a dropped call loses no bytes.
    pub(crate) async fn read_head(&mut self) -> Result<(), StreamError> {
        loop {
            if !self.input.is_empty()
                && let Some(head) =
                    head::take_response(&mut self.input).map_err(|_| StreamError::Protocol)?
            {
                return self.accept_head(head);
            }
            if self.is_input_ended {
                return Err(StreamError::Reset);
            }
            self.fill().await.map_err(|_| StreamError::Reset)?;
        }
    }

    fn accept_head(&mut self, head: ResponseHead) -> Result<(), StreamError> {
        if head.status == StatusCode::SWITCHING_PROTOCOLS && self.requests_upgrade {
            self.was_upgraded = true;
            self.body = Some(BodyReader::until_close());
        } else if !head.status.is_informational() {
            let body = BodyReader::from_response(&self.request_method, &head);
            self.body = Some(body.map_err(|_| StreamError::Protocol)?);
        }
        self.head = Some(Box::new(head));
        Ok(())
    }

    /// Reads the next part of the response body; `None` at its end.
    ///
    /// Cancel safe: a dropped call loses no bytes.
    ///
    /// # Errors
    /// If the body is malformed or incomplete, or the connection is broken.
    pub(crate) async fn read_body(&mut self) -> Result<Option<bytes::Bytes>, InvalidMessage> {
        loop {
            let body = self.body.as_mut().ok_or(InvalidMessage)?;
            match body.read(&mut self.input, self.is_input_ended)? {
                BodyProgress::Data(part) => return Ok(Some(part)),
                BodyProgress::Done => return Ok(None),
                BodyProgress::NeedsInput => self.fill().await?,
            }
        }
    }

    async fn fill(&mut self) -> Result<(), InvalidMessage> {
        self.input.reserve(READ_BYTES);
        let count = self.stream.read_buf(&mut self.input).await;
        self.is_input_ended = count.map_err(|_| InvalidMessage)? == 0;
        Ok(())
    }

    /// Returns the connection if it can carry another request: the response is complete, no
    /// byte follows it, and both versions and the `connection` field permit it.
    pub(crate) fn into_reusable(self) -> Option<QueuedStream> {
        let is_complete = self
            .body
            .as_ref()
            .is_some_and(BodyReader::ends_before_close);
        let head = self.head?;
        // A chunked response with a length is an attempt to split responses.
        let is_ambiguous = head.framing == Ok(BodyFraming::ChunkedWithLength);
        let can_reuse = is_complete
            && !is_ambiguous
            && !self.is_input_ended
            && self.input.is_empty()
            && self.writer == BodyWriter::Length(0)
            && is_persistent(head.version, &head.headers);
        can_reuse.then_some(self.stream)
    }
}
