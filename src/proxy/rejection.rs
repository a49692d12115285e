//! Answers that the sidecar makes itself: ONE table from reason to status, RFC 9209 error and words.
//!
//! Every such answer says that it is one, and why: `proxy-status`, `x-outrigger-reason`, and a problem body (RFC 9457). With 429
//! and 503 it says when to come back, and never too early.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use pingora::http::ResponseHeader;

use crate::{
    clock,
    policy::snapshot::FaultAbortStatus,
    proxy::{
        client::Client,
        grpc,
        rate_limits::{self, RateLimitOutcome},
        signs::LifecycleHeaders,
    },
    state::active_policy::RouteState,
    telemetry::reason::Reason,
};

/// The name of this proxy in `proxy-status` and `via`.
pub(super) const PSEUDONYM: &str = "outrigger";

/// When to come back if nobody knows better.
pub(super) const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);

/// An answer of its own.
#[derive(Debug)]
pub(super) enum ResponseOverride {
    /// It is somewhere else.
    Redirect { status: u16, location: String },
    /// An error on purpose.
    Fault(FaultAbortStatus),
    /// What the policy says.
    Fallback {
        status: u16,
        content_type: HeaderValue,
        body: Bytes,
    },
    /// What the backend said before, so long ago; the status that it gives now, if it was asked.
    Stale {
        fields: HeaderMap,
        body: Bytes,
        age: Duration,
        now: Option<u16>,
    },
}

/// A refusal.
#[derive(Debug)]
pub(super) struct Rejection {
    pub(super) reason: Reason,
    /// Who refuses: a breaker, a rule. Empty if that is plain.
    pub(super) rejected_by: Arc<str>,
    pub(super) retry_after: Option<Duration>,
    /// What is answered where the table of reasons does not say it.
    pub(super) response_override: Option<Box<ResponseOverride>>,
    /// Whether the connection cannot be used any more.
    pub(super) is_fatal: bool,
}

impl Rejection {
    pub(super) fn from_reason(reason: Reason) -> Self {
        Self::new(reason, Arc::default())
    }

    pub(super) fn new(reason: Reason, rejected_by: Arc<str>) -> Self {
        Self {
            reason,
            rejected_by,
            retry_after: None,
            response_override: None,
            is_fatal: false,
        }
    }

    pub(super) fn with_retry_after(self, wait: Duration) -> Self {
        Self {
            retry_after: Some(wait),
            ..self
        }
    }

    /// The status.
    pub(super) fn status(&self) -> u16 {
        match self.response_override.as_deref() {
            Some(
                ResponseOverride::Redirect { status, .. }
                | ResponseOverride::Fallback { status, .. }
                | ResponseOverride::Fault(FaultAbortStatus::Http(status)),
            ) => *status,
            Some(
                ResponseOverride::Fault(FaultAbortStatus::Grpc(_)) | ResponseOverride::Stale { .. },
            ) => 200,
            None => rejection_row(self.reason).status,
        }
    }

    /// Whether it is told in the words of gRPC.
    pub(super) fn is_grpc(&self, client: &Client) -> bool {
        client.is_grpc()
            || matches!(
                self.response_override.as_deref(),
                Some(ResponseOverride::Fault(FaultAbortStatus::Grpc(_)))
            )
    }

    /// The status of gRPC.
    pub(super) fn grpc_status(&self) -> u8 {
        match self.response_override.as_deref() {
            Some(ResponseOverride::Fault(FaultAbortStatus::Grpc(status))) => *status,
            Some(ResponseOverride::Fault(FaultAbortStatus::Http(status))) => {
                grpc::status_from_http(*status)
            }
            _ => grpc_status_from_reason(self.reason),
        }
    }

    /// `TOKEN` or `TOKEN:NAME`.
    pub(super) fn qualified_token(&self) -> String {
        qualified_token(self.reason, &self.rejected_by)
    }
}

/// `TOKEN` or `TOKEN:NAME`.
pub(super) fn qualified_token(reason: Reason, rejected_by: &str) -> String {
    if rejected_by.is_empty() {
        reason.token().to_owned()
    } else {
        format!("{}:{rejected_by}", reason.token())
    }
}

struct RejectionRow {
    status: u16,
    /// The proxy error type of RFC 9209; none for what is no error.
    proxy_error: Option<&'static str>,
    title: &'static str,
}

fn rejection_row(reason: Reason) -> RejectionRow {
    let (status, error, title) = match reason {
        Reason::NoRoute => (404, "destination_not_found", "no route takes this request"),
        Reason::Redirect => {
            return RejectionRow {
                status: 302,
                proxy_error: None,
                title: "this is somewhere else",
            };
        }
        Reason::Stale => {
            return RejectionRow {
                status: 200,
                proxy_error: None,
                title: "an earlier answer",
            };
        }
        Reason::RetriesExhausted => (503, "http_response_incomplete", "the backend fails"),
        Reason::FaultInjected => (503, "http_request_denied", "a fault on purpose"),
        Reason::Shed => (
            503,
            "connection_limit_reached",
            "the instance is short of resources",
        ),
        Reason::Draining => (
            503,
            "destination_unavailable",
            "the instance is leaving; ask another",
        ),
        Reason::WarmingUp => (
            503,
            "destination_unavailable",
            "the instance is warming up; ask another",
        ),
        Reason::NotAllowed => (
            403,
            "http_request_denied",
            "this client may not use the route",
        ),
        Reason::BreakerOpen => (
            503,
            "destination_unavailable",
            "the circuit breaker is open",
        ),
        Reason::RateLimited => (429, "http_request_denied", "too many requests"),
        Reason::RateLimitUnavailable => (
            503,
            "destination_unavailable",
            "the rate limit of all instances cannot be asked",
        ),
        Reason::AdmissionControl => (
            503,
            "destination_unavailable",
            "the backend answers too few requests well",
        ),
        Reason::ConcurrencyLimit => (503, "connection_limit_reached", "too many requests at once"),
        Reason::QueueTimeout => (
            503,
            "connection_limit_reached",
            "no place came free in time",
        ),
        Reason::ConnectionLimit => (
            503,
            "connection_limit_reached",
            "too many connections to the backend",
        ),
        Reason::NoHealthyEndpoint => (503, "destination_unavailable", "no endpoint is healthy"),
        Reason::ConnectFailed => (
            502,
            "connection_refused",
            "no connection could be made to the backend",
        ),
        Reason::TlsFailed => (
            502,
            "tls_protocol_error",
            "no TLS could be agreed on with the backend",
        ),
        Reason::ConnectTimeout => (
            504,
            "connection_timeout",
            "no connection was made to the backend in time",
        ),
        Reason::UpstreamReset => (
            502,
            "connection_terminated",
            "the backend ended the connection",
        ),
        Reason::UpstreamTimeout => (
            504,
            "http_response_timeout",
            "the backend did not answer in time",
        ),
        Reason::UpstreamProtocolError => (
            502,
            "http_protocol_error",
            "the backend's answer cannot be understood",
        ),
        Reason::RequestTimeout => (504, "http_response_timeout", "the request took too long"),
        Reason::StreamIdleTimeout => (
            408,
            "http_request_error",
            "the request's body did not come in time",
        ),
        Reason::BadRequest => (
            400,
            "http_request_error",
            "the request cannot be understood",
        ),
        Reason::MethodNotSupported => (405, "http_request_error", "the method is not proxied"),
        Reason::HeaderTimeout => (
            408,
            "http_request_error",
            "the request's head did not come in time",
        ),
        Reason::HeaderTooLarge => (431, "http_request_error", "the request's head is too long"),
        Reason::BodyTooLarge => (413, "http_request_error", "the request's body is too long"),
        // Nobody is there to see it; the number is nginx's, for the log.
        Reason::ClientClosed => (499, "http_request_error", "the client left"),
        Reason::LoopDetected => (
            508,
            "proxy_loop_detected",
            "the request came back to its sender",
        ),
        Reason::InternalError => (500, "proxy_internal_error", "a fault of the proxy"),
    };
    RejectionRow {
        status,
        proxy_error: Some(error),
        title,
    }
}

/// What a reason means, in words.
pub(super) fn reason_title(reason: Reason) -> &'static str {
    rejection_row(reason).title
}

/// The status of gRPC for a reason: the column of the table beside the status of HTTP.
fn grpc_status_from_reason(reason: Reason) -> u8 {
    match reason {
        Reason::RateLimited => grpc::RESOURCE_EXHAUSTED,
        Reason::RequestTimeout | Reason::UpstreamTimeout | Reason::StreamIdleTimeout => {
            grpc::DEADLINE_EXCEEDED
        }
        Reason::NoRoute | Reason::Redirect | Reason::MethodNotSupported => 12,
        Reason::NotAllowed => 7,
        Reason::ClientClosed => 1,
        Reason::UpstreamProtocolError
        | Reason::BadRequest
        | Reason::HeaderTimeout
        | Reason::HeaderTooLarge
        | Reason::BodyTooLarge
        | Reason::LoopDetected
        | Reason::Stale
        | Reason::InternalError => 13,
        Reason::BreakerOpen
        | Reason::RetriesExhausted
        | Reason::FaultInjected
        | Reason::Shed
        | Reason::Draining
        | Reason::WarmingUp
        | Reason::RateLimitUnavailable
        | Reason::AdmissionControl
        | Reason::ConcurrencyLimit
        | Reason::QueueTimeout
        | Reason::ConnectionLimit
        | Reason::NoHealthyEndpoint
        | Reason::ConnectFailed
        | Reason::TlsFailed
        | Reason::ConnectTimeout
        | Reason::UpstreamReset => grpc::UNAVAILABLE,
    }
}

/// The same refusal for a client of gRPC: an answer that is nothing but a status (gRPC over HTTP/2, "Trailers-Only").
fn grpc_head(rejection: &Rejection) -> pingora::Result<ResponseHeader> {
    let mut head = ResponseHeader::build(200, Some(8))?;
    head.insert_header("content-type", "application/grpc")?;
    for (name, value) in &grpc::status_trailers(
        rejection.grpc_status(),
        rejection_row(rejection.reason).title,
    ) {
        head.insert_header(name.clone(), value)?;
    }
    if let Some(wait) = rejection.retry_after {
        head.insert_header(
            "grpc-retry-pushback-ms",
            wait.as_nanos()
                .div_ceil(1_000_000)
                .min(i32::MAX.unsigned_abs().into())
                .to_string(),
        )?;
    }
    Ok(head)
}

/// Answers a client with a refusal. The connection stays usable if the session says so.
pub(super) async fn send_rejection(
    client: &mut Client,
    rejection: &Rejection,
    rate_limits: Option<(&RouteState, &RateLimitOutcome)>,
    lifecycle_headers: LifecycleHeaders,
) -> Result<(), Reason> {
    let is_grpc = rejection.is_grpc(client);
    let body = if is_grpc {
        Bytes::new()
    } else {
        response_body(rejection)
    };
    let built_head = if is_grpc {
        grpc_head(rejection)
    } else {
        http_head(rejection, body.len())
    };
    let mut head = built_head
        .and_then(|head| add_proxy_status(head, rejection))
        .map_err(|_| Reason::InternalError)?;
    let rate_limits = rate_limits
        .into_iter()
        .flat_map(|(route, rate_limits)| rate_limits::limit_headers(route, rate_limits));
    for (name, value) in rate_limits.chain(lifecycle_headers) {
        head.append_header(name, value)
            .map_err(|_| Reason::InternalError)?;
    }
    client.write_head(Box::new(head)).await?;
    client.write(body).await?;
    client.finish(None).await?;
    clock::timeout(Some(client.listener.limits.idle_timeout), client.flush())
        .await
        .unwrap_or(Err(Reason::ClientClosed))
}

fn response_body(rejection: &Rejection) -> Bytes {
    match rejection.response_override.as_deref() {
        Some(ResponseOverride::Fallback { body, .. }) => body.clone(),
        Some(ResponseOverride::Stale { body, .. }) => body.clone(),
        Some(ResponseOverride::Fault(_)) if matches!(rejection.status(), 204 | 304) => Bytes::new(),
        Some(ResponseOverride::Redirect { .. } | ResponseOverride::Fault(_)) | None => {
            problem_body(rejection)
        }
    }
}

fn problem_body(rejection: &Rejection) -> Bytes {
    let (title, status, token) = (
        rejection_row(rejection.reason).title,
        rejection.status(),
        rejection.qualified_token(),
    );
    Bytes::from(format!(
        r#"{{"type":"about:blank","title":"{title}","status":{status},"reason":"{token}"}}"#
    ))
}

fn http_head(rejection: &Rejection, length: usize) -> pingora::Result<ResponseHeader> {
    let status = rejection.status();
    let mut head = ResponseHeader::build(status, Some(8))?;
    match rejection.response_override.as_deref() {
        Some(ResponseOverride::Fallback { content_type, .. }) => {
            head.insert_header("content-type", content_type)?
        }
        Some(ResponseOverride::Stale {
            fields: headers,
            age,
            now: upstream_status,
            ..
        }) => add_stale_headers(&mut head, headers, *age, *upstream_status)?,
        Some(ResponseOverride::Redirect { .. } | ResponseOverride::Fault(_)) | None => {
            head.insert_header("content-type", "application/problem+json")?
        }
    }
    if !matches!(status, 204 | 304) {
        head.insert_header("content-length", length)?;
    }
    if let Some(ResponseOverride::Redirect { location, .. }) =
        rejection.response_override.as_deref()
    {
        head.insert_header("location", location.as_str())?;
    }
    if status == 405 {
        head.insert_header(
            "allow",
            "GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH, TRACE",
        )?;
    }
    if matches!(status, 429 | 503) {
        head.insert_header(
            "retry-after",
            round_up_to_seconds(rejection.retry_after.unwrap_or(DEFAULT_RETRY_AFTER)),
        )?;
    }
    Ok(head)
}

/// The fields of an earlier answer, and that it is one (RFC 9211): where the backend was asked, with the status that came back.
fn add_stale_headers(
    head: &mut ResponseHeader,
    headers: &HeaderMap,
    age: Duration,
    upstream_status: Option<u16>,
) -> pingora::Result<()> {
    for (name, value) in headers {
        head.append_header(name.clone(), value)?;
    }
    head.remove_header("transfer-encoding");
    head.insert_header("age", age.as_secs())?;
    let cache_status = match upstream_status {
        Some(status) => {
            format!("{PSEUDONYM}; fwd=stale; fwd-status={status}; detail=stale-if-error")
        }
        None => format!("{PSEUDONYM}; hit; detail=stale-if-error"),
    };
    head.append_header("cache-status", cache_status).map(drop)
}

/// Says that the answer is ours, and why.
fn add_proxy_status(
    mut head: ResponseHeader,
    rejection: &Rejection,
) -> pingora::Result<ResponseHeader> {
    let token = rejection.qualified_token();
    match rejection_row(rejection.reason).proxy_error {
        Some(error) => head.insert_header(
            "proxy-status",
            format!(r#"{PSEUDONYM}; error={error}; details="{token}""#),
        )?,
        None => head.insert_header("proxy-status", PSEUDONYM)?,
    }
    head.insert_header("x-outrigger-reason", token)?;
    Ok(head)
}

/// Rounded up, so that nobody comes back too early, and at least one.
pub(super) fn round_up_to_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests;
