//! Events on the two sides of a proxied request, and what its owner waits for.
//!
//! HTTP/1 and HTTP/2 streams report the same events, so the owner of a request does not know
//! the protocol of either side.

use bytes::Bytes;

use crate::telemetry::reason::Reason;

/// What the owner of a request waits for on the client's side, besides the flush of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DownstreamInterest {
    /// The owner waits for the next chunk of the request body.
    Body,
    /// The owner waits for the client to close the stream. The request is complete.
    Close,
    /// The owner waits only for the flush, and reads nothing.
    Nothing,
}

impl DownstreamInterest {
    /// Returns [`Self::Body`] while the body is incomplete, and [`Self::Close`] afterwards.
    pub(crate) fn from_body_state(is_body_done: bool) -> Self {
        if is_body_done {
            Self::Close
        } else {
            Self::Body
        }
    }
}

/// Event on the client's side.
pub(crate) enum DownstreamEvent {
    /// All queued output was passed on to the client, or the client has closed the stream.
    Flushed(Result<(), Reason>),
    /// The client sent a chunk of its request or the end of it (`None`), or the stream failed.
    Read(Result<Option<Bytes>, Reason>),
}

/// What the owner of a request waits for on the backend's side, besides the flush of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UpstreamInterest {
    /// The owner waits for the head of an interim or the final response.
    Head,
    /// The owner waits for the next chunk of the response body.
    Body,
    /// The owner waits only for the flush, and reads nothing.
    Nothing,
}

/// Event on the backend's side.
pub(crate) enum UpstreamEvent {
    /// A response head arrived, or the stream failed before it.
    Head(Result<(), StreamError>),
    /// A chunk of the response body or the end of it (`None`) arrived, or the stream failed.
    Body(Result<Option<Bytes>, Reason>),
    /// The flush ended: `true` if all queued output was passed on, `false` if the backend
    /// accepts no more of the request.
    Flushed(bool),
}

/// Failure of a stream to a backend before its response head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamError {
    /// The backend states that it did not process the request.
    Refused,
    /// The connection or the stream was reset or closed.
    Reset,
    /// The backend violated its protocol.
    Protocol,
}
