//! Rejections: responses that the sidecar generates itself, and why.
//!
//! A rejection is a value that the stages of a request return as an error. `reason_table` maps its
//! reason to a status and a text. The module does not write the response.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::HeaderValue;

use crate::{
    message::headers::Headers,
    policy::sections::fault_injection::FaultAbortStatus,
    proxy::{
        request::{grpc, reason_table::properties},
        upstream::stream::WriteError,
    },
    telemetry::reason::Reason,
};

/// Name of this proxy in the header fields `proxy-status` and `via`.
pub(crate) const PSEUDONYM: &str = "outrigger";

/// Wait in `retry-after` for a rejection that no policy gives a wait.
pub(crate) const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Response that replaces the one that the reason implies.
#[derive(Debug)]
pub(crate) enum ResponseOverride {
    /// A redirect that a route defines.
    Redirect { status: u16, location: String },
    /// An error that fault injection generates.
    Fault(FaultAbortStatus),
    /// The fixed response of a fallback.
    Fallback {
        status: u16,
        content_type: HeaderValue,
        body: Bytes,
    },
    /// A cached response that is sent because the backend fails (RFC 5861).
    Stale {
        headers: Headers,
        body: Bytes,
        age: Duration,
        /// Status of the failed response; `None` if the backend sent none.
        upstream_status: Option<u16>,
    },
}

/// Reason and response for a request that is not forwarded, or whose response is replaced.
#[derive(Debug)]
pub(crate) struct Rejection {
    pub(crate) reason: Reason,
    /// Breaker, rule, limit or endpoint that rejects; empty if there is none.
    pub(crate) rejected_by: Arc<str>,
    /// Wait that the client is advised in `retry-after`; `None` if it is unknown.
    pub(crate) retry_after: Option<Duration>,
    /// Numbers behind the rejection, for the decision trace; `None` if they are read later.
    pub(crate) evidence: Option<String>,
    /// Response that replaces the one that the reason implies.
    pub(crate) response_override: Option<Box<ResponseOverride>>,
    /// Whether the client's connection cannot be reused.
    pub(crate) is_fatal: bool,
}

impl Rejection {
    /// Creates a rejection that no named policy or endpoint caused.
    pub(crate) fn from_reason(reason: Reason) -> Self {
        Self::new(reason, Arc::default())
    }

    /// Creates a rejection by a named policy or endpoint.
    pub(crate) fn new(reason: Reason, rejected_by: Arc<str>) -> Self {
        Self {
            reason,
            rejected_by,
            retry_after: None,
            evidence: None,
            response_override: None,
            is_fatal: false,
        }
    }

    /// Creates a rejection after which the client's connection cannot be reused: it is closed,
    /// or its input cannot be parsed.
    pub(crate) fn fatal(reason: Reason) -> Self {
        Self {
            is_fatal: true,
            ..Self::from_reason(reason)
        }
    }

    /// Sets the wait that the client is advised.
    pub(crate) fn with_retry_after(self, wait: Duration) -> Self {
        Self {
            retry_after: Some(wait),
            ..self
        }
    }

    /// Sets the numbers behind the rejection.
    pub(crate) fn with_evidence(self, evidence: String) -> Self {
        Self {
            evidence: Some(evidence),
            ..self
        }
    }

    /// Replaces the response that the reason implies.
    pub(crate) fn with_override(self, response: ResponseOverride) -> Self {
        Self {
            response_override: Some(Box::new(response)),
            ..self
        }
    }

    /// Returns the HTTP status of the response.
    pub(crate) fn status(&self) -> u16 {
        match self.response_override.as_deref() {
            Some(
                ResponseOverride::Redirect { status, .. }
                | ResponseOverride::Fallback { status, .. }
                | ResponseOverride::Fault(FaultAbortStatus::Http(status)),
            ) => *status,
            Some(
                ResponseOverride::Fault(FaultAbortStatus::Grpc(_)) | ResponseOverride::Stale { .. },
            ) => 200,
            None => properties(self.reason).status,
        }
    }

    /// Returns whether the response is a gRPC status: to a gRPC call, or as an injected gRPC
    /// error.
    pub(crate) fn is_grpc(&self, is_grpc_call: bool) -> bool {
        is_grpc_call
            || matches!(
                self.response_override.as_deref(),
                Some(ResponseOverride::Fault(FaultAbortStatus::Grpc(_)))
            )
    }

    /// Returns the gRPC status of the response.
    pub(crate) fn grpc_status(&self) -> u8 {
        match self.response_override.as_deref() {
            Some(ResponseOverride::Fault(FaultAbortStatus::Grpc(status))) => *status,
            Some(ResponseOverride::Fault(FaultAbortStatus::Http(status))) => {
                grpc::status_from_http(*status)
            }
            _ => properties(self.reason).grpc_status,
        }
    }

    /// Returns `TOKEN`, or `TOKEN:NAME` if a named policy or endpoint rejects.
    pub(crate) fn qualified_token(&self) -> String {
        qualified_token(self.reason, &self.rejected_by)
    }
}

impl From<WriteError> for Rejection {
    fn from(error: WriteError) -> Self {
        Self::from_reason(match error {
            WriteError::InvalidTarget => Reason::BadRequest,
            WriteError::Internal => Reason::InternalError,
        })
    }
}

/// Returns `TOKEN`, or `TOKEN:NAME` if `rejected_by` is not empty.
pub(crate) fn qualified_token(reason: Reason, rejected_by: &str) -> String {
    if rejected_by.is_empty() {
        reason.token().to_owned()
    } else {
        format!("{}:{rejected_by}", reason.token())
    }
}

/// Rounds a wait up to whole seconds, at least one, so that no client retries too early.
pub(crate) fn round_up_to_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests;
