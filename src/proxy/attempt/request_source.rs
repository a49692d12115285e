//! Who an attempt is made for: a client that is there, or a copy of what one asked.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use pingora::http::RequestHeader;

use crate::{
    policy::snapshot::ListenerSpec,
    proxy::{
        downstream::{client::Client, request_body::RequestBody},
        request::{
            rejection::Rejection,
            view::{ClientIdentity, RequestView},
        },
        wire::events::{DownstreamEvent, DownstreamInterest},
    },
    telemetry::reason::Reason,
};

/// Who an attempt is made for.
pub(crate) enum RequestSource<'a> {
    /// A client. It may still be sending, and is watched.
    Client(&'a mut Client, &'a mut RequestBody),
    /// What a client asked. Somebody else watches it, or nobody does.
    Replay(&'a BufferedRequest),
}

/// All of a request.
#[derive(Debug, Clone)]
pub(crate) struct BufferedRequest {
    head: RequestHeader,
    identity: ClientIdentity,
    listener: Arc<ListenerSpec>,
    is_http2: bool,
    is_grpc: bool,
    body: Vec<Bytes>,
    trailers: Option<HeaderMap>,
}

impl BufferedRequest {
    /// A copy of a request, if all of it has come and is still at hand.
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

    /// What was asked.
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
    /// What is asked.
    pub(crate) fn request_view(&self) -> RequestView<'_> {
        match self {
            Self::Client(client, _) => client.request_view(),
            Self::Replay(buffered) => buffered.request_view(),
        }
    }

    /// What has come of the body, to be sent again.
    pub(crate) fn buffered_body(&self) -> &[Bytes] {
        match self {
            Self::Client(_, body) => body.buffered(),
            Self::Replay(buffered) => &buffered.body,
        }
    }

    /// The trailers, once all of it has come.
    pub(crate) fn trailers(&self) -> Option<&HeaderMap> {
        match self {
            Self::Client(_, body) => body.trailers(),
            Self::Replay(buffered) => buffered.trailers.as_ref(),
        }
    }

    /// Whether all of it has come.
    pub(crate) fn is_body_done(&self) -> bool {
        match self {
            Self::Client(_, body) => body.is_done(),
            Self::Replay(_) => true,
        }
    }

    /// Whether all of it has come and can be sent again.
    pub(crate) fn is_fully_buffered(&self) -> bool {
        match self {
            Self::Client(_, body) => body.is_fully_buffered(),
            Self::Replay(_) => true,
        }
    }

    /// Waits for what the client does next.
    pub(crate) async fn next_event(&mut self, interest: DownstreamInterest) -> DownstreamEvent {
        match self {
            Self::Client(client, _) => client.next_event(interest).await,
            Self::Replay(_) => std::future::pending().await,
        }
    }

    /// Waits until the client leaves.
    pub(crate) async fn closed(&mut self) -> Reason {
        match self {
            Self::Client(client, _) => client.closed().await,
            Self::Replay(_) => std::future::pending().await,
        }
    }

    /// Takes note of what was just read of the client.
    pub(crate) fn record_chunk(&mut self, chunk: Option<&Bytes>) -> Result<(), Rejection> {
        match self {
            // The session tells of the end with the last piece, or after it.
            Self::Client(client, body) => body.record_chunk(
                chunk,
                chunk.is_none() || client.is_body_done(),
                client.take_trailers(),
            ),
            Self::Replay(_) => Ok(()),
        }
    }
}
