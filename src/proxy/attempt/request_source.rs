//! The source of an attempt's request: a connected client, or a buffered copy of its request.
//!
//! The module hides the difference from `dispatch`. It does not decide how much of a body is
//! buffered.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    message::{RequestHead, headers::Headers},
    policy::snapshot::ListenerSpec,
    proxy::{
        downstream::{client::Client, request_body::RequestBody},
        request::{
            rejection::Rejection,
            view::{ClientIdentity, RequestView},
        },
        wire::events::{DownstreamEvent, DownstreamInterest},
    },
    state::instance::memory::MemoryBudget,
    telemetry::{memory_measure::MemoryMeasure, reason::Reason},
};

/// Source from which an attempt reads its request.
pub(crate) enum RequestSource<'a> {
    /// A connected client. It may still be sending, and its close ends the attempt.
    Client(&'a mut Client, &'a mut RequestBody),
    /// A buffered request. The attempt does not observe the client.
    Replay(&'a BufferedRequest),
}

/// A complete request with its body, independent of the client's connection.
#[derive(Debug, Clone)]
pub(crate) struct BufferedRequest {
    head: RequestHead,
    identity: ClientIdentity,
    listener: Arc<ListenerSpec>,
    is_http2: bool,
    is_grpc: bool,
    body: Vec<Bytes>,
    trailers: Option<Headers>,
}

impl BufferedRequest {
    /// Copies a request. Returns `None` unless the whole body has arrived and is still
    /// buffered.
    pub(crate) fn from_client(client: &Client, body: &RequestBody) -> Option<Self> {
        let request = client.request_view();
        body.is_fully_buffered().then(|| Self {
            head: request.head.clone(),
            identity: request.identity.clone(),
            listener: client.listener.clone(),
            is_http2: request.is_http2,
            is_grpc: request.is_grpc,
            body: body.buffered().to_vec(),
            trailers: body.trailers().cloned(),
        })
    }

    /// Returns a view of the buffered request, like that of a connected client.
    pub(crate) fn request_view(&self) -> RequestView<'_> {
        RequestView {
            head: &self.head,
            identity: &self.identity,
            listener: &self.listener,
            is_http2: self.is_http2,
            is_grpc: self.is_grpc,
        }
    }
}

impl RequestSource<'_> {
    /// Returns a view of the request, whatever its source is.
    pub(crate) fn request_view(&self) -> RequestView<'_> {
        match self {
            Self::Client(client, _) => client.request_view(),
            Self::Replay(buffered) => buffered.request_view(),
        }
    }

    /// Returns the buffered chunks of the body, which each attempt sends first.
    pub(crate) fn buffered_body(&self) -> &[Bytes] {
        match self {
            Self::Client(_, body) => body.buffered(),
            Self::Replay(buffered) => &buffered.body,
        }
    }

    /// Returns the trailers of the request, once the whole request has arrived.
    pub(crate) fn trailers(&self) -> Option<&Headers> {
        match self {
            Self::Client(_, body) => body.trailers(),
            Self::Replay(buffered) => buffered.trailers.as_ref(),
        }
    }

    /// Returns whether the whole request has arrived.
    pub(crate) fn is_body_done(&self) -> bool {
        match self {
            Self::Client(_, body) => body.is_done(),
            Self::Replay(_) => true,
        }
    }

    /// Returns whether the whole request has arrived and can be sent again.
    pub(crate) fn is_fully_buffered(&self) -> bool {
        match self {
            Self::Client(_, body) => body.is_fully_buffered(),
            Self::Replay(_) => true,
        }
    }

    /// Releases the buffered chunks of a body because memory is short. The body then cannot be
    /// sent again. A copy is not released.
    pub(crate) fn release_body(&mut self, memory: &MemoryBudget) {
        if let Self::Client(_, body) = self
            && body.release()
        {
            memory.record(MemoryMeasure::ReleaseBody);
        }
    }

    /// Waits for the next event of the client. A buffered request has none and waits forever.
    pub(crate) async fn next_event(&mut self, interest: DownstreamInterest) -> DownstreamEvent {
        match self {
            Self::Client(client, _) => client.next_event(interest).await,
            Self::Replay(_) => std::future::pending().await,
        }
    }

    /// Waits until the client closes. A buffered request waits forever.
    pub(crate) async fn closed(&mut self) -> Reason {
        match self {
            Self::Client(client, _) => client.closed().await,
            Self::Replay(_) => std::future::pending().await,
        }
    }

    /// Records a chunk that was read from the client; `None` is the end of the body.
    ///
    /// # Errors
    /// A rejection if the body violates a limit.
    pub(crate) fn record_chunk(&mut self, chunk: Option<&Bytes>) -> Result<(), Rejection> {
        match self {
            Self::Client(client, body) => body.record_chunk(client, chunk),
            Self::Replay(_) => Ok(()),
        }
    }
}
