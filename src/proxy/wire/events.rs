//! What the two sides of a proxied request report to the task that owns it, and what that task waits for.

use bytes::Bytes;

use crate::telemetry::reason::Reason;

/// What the owner of a request waits for on the client's side, besides the flush of queued output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DownstreamInterest {
    /// The next chunk of the request body.
    Body,
    /// The close of the stream by the client. The request is complete.
    Close,
    /// Only the flush.
    Nothing,
}

impl DownstreamInterest {
    /// Waits for more of the body, or for the close once the body is complete.
    pub(crate) fn from_body_state(is_body_done: bool) -> Self {
        if is_body_done {
            Self::Close
        } else {
            Self::Body
        }
    }
}

/// What happened on the client's side.
pub(crate) enum DownstreamEvent {
    /// The client received all queued output, or cannot receive it.
    Flushed(Result<(), Reason>),
    /// The client sent a chunk of its request, the end of it (`None`), or failed.
    Read(Result<Option<Bytes>, Reason>),
}

/// What the owner of a request waits for on the backend's side, besides the flush of queued output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UpstreamInterest {
    /// The head of the final or of an interim response.
    Head,
    /// The next chunk of the response body.
    Body,
    /// Only the flush.
    Nothing,
}

/// What happened on the backend's side.
pub(crate) enum UpstreamEvent {
    /// A response head arrived, or cannot arrive.
    Head(Result<(), StreamError>),
    /// A chunk of the response body arrived, the end of it (`None`), or the stream failed.
    Body(Result<Option<Bytes>, Reason>),
    /// The flush ended; `true` if the backend received all queued output.
    Flushed(bool),
}

/// How a stream to a backend failed before its response head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamError {
    /// The backend states that it did not process the request.
    Refused,
    /// The connection or the stream was cut off.
    Reset,
    /// The backend violated its protocol.
    Protocol,
}
