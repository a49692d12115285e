//! Who an attempt is made for: a client that is there, or a copy of what one asked.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use pingora::http::RequestHeader;

use super::{
    asked::Asked,
    client::{Client, ClientEvent, Listen, Peer},
    rejection::Rejection,
    request_body::RequestBody,
};
use crate::{policy::snapshot::ListenerSpec, telemetry::reason::Reason};

/// Who an attempt is made for.
pub(super) enum Asker<'a> {
    /// A client. It may still be sending, and is watched.
    Client(&'a mut Client, &'a mut RequestBody),
    /// What a client asked. Somebody else watches it, or nobody does.
    Kept(&'a Kept),
}

/// All of a request.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    head: RequestHeader,
    peer: Peer,
    listener: Arc<ListenerSpec>,
    is_http2: bool,
    is_grpc: bool,
    body: Vec<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Kept {
    /// A copy of a request, if all of it has come and is still at hand.
    pub(super) fn of(client: &Client, body: &RequestBody) -> Option<Self> {
        let asked = client.asked();
        body.is_whole().then(|| Self {
            head: asked.head.clone(),
            peer: asked.peer.clone(),
            listener: client.listener.clone(),
            is_http2: asked.is_http2,
            is_grpc: asked.is_grpc,
            body: body.kept().to_vec(),
            trailers: body.trailers().cloned(),
        })
    }

    /// What was asked.
    pub(super) fn asked(&self) -> Asked<'_> {
        Asked {
            head: &self.head,
            peer: &self.peer,
            trusted: &self.listener.trusted,
            is_http2: self.is_http2,
            is_grpc: self.is_grpc,
        }
    }
}

impl Asker<'_> {
    /// What is asked.
    pub(super) fn asked(&self) -> Asked<'_> {
        match self {
            Self::Client(client, _) => client.asked(),
            Self::Kept(kept) => kept.asked(),
        }
    }

    /// What has come of the body, to be sent again.
    pub(super) fn body(&self) -> &[Bytes] {
        match self {
            Self::Client(_, body) => body.kept(),
            Self::Kept(kept) => &kept.body,
        }
    }

    /// The trailers, once all of it has come.
    pub(super) fn trailers(&self) -> Option<&HeaderMap> {
        match self {
            Self::Client(_, body) => body.trailers(),
            Self::Kept(kept) => kept.trailers.as_ref(),
        }
    }

    /// Whether all of it has come.
    pub(super) fn is_done(&self) -> bool {
        match self {
            Self::Client(_, body) => body.is_done(),
            Self::Kept(_) => true,
        }
    }

    /// Whether all of it has come and can be sent again.
    pub(super) fn is_whole(&self) -> bool {
        match self {
            Self::Client(_, body) => body.is_whole(),
            Self::Kept(_) => true,
        }
    }

    /// Waits for what the client does next.
    pub(super) async fn next(&mut self, listen: Listen) -> ClientEvent {
        match self {
            Self::Client(client, _) => client.next(listen).await,
            Self::Kept(_) => std::future::pending().await,
        }
    }

    /// Waits until the client leaves.
    pub(super) async fn gone(&mut self) -> Reason {
        match self {
            Self::Client(client, _) => client.gone().await,
            Self::Kept(_) => std::future::pending().await,
        }
    }

    /// Takes note of what was just read of the client.
    pub(super) fn note(&mut self, piece: Option<&Bytes>) -> Result<(), Rejection> {
        match self {
            // The session tells of the end with the last piece, or after it.
            Self::Client(client, body) => body.note(
                piece,
                piece.is_none() || client.is_body_done(),
                client.take_trailers(),
            ),
            Self::Kept(_) => Ok(()),
        }
    }
}
