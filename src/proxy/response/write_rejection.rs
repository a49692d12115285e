//! Writes a response that the sidecar generates itself.
//!
//! Every such response names its reason: `proxy-status` (RFC 9209), `x-outrigger-reason`, and a
//! problem body (RFC 9457). A 429 or 503 also states when to retry, rounded up to whole seconds
//! so that no retry is too early.
//!
//! The module does not decide why a request is rejected.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use pingora::http::ResponseHeader;

use crate::{
    clock,
    proxy::{
        downstream::client::Client,
        headers::{lifecycle::LifecycleHeaders, rate_limit},
        request::{
            grpc,
            rate_limit_outcome::RateLimitOutcome,
            reason_table::properties,
            rejection::{
                DEFAULT_RETRY_AFTER, PSEUDONYM, Rejection, ResponseOverride, round_up_to_seconds,
            },
        },
    },
    state::active_policy::RouteState,
    telemetry::reason::Reason,
};

/// Sends a rejection to the client as a complete response and flushes it.
///
/// `serve` decides whether the connection is reused.
///
/// # Errors
/// If the client closed or received the response too slowly, or a header value is invalid.
pub(crate) async fn send_rejection(
    client: &mut Client,
    rejection: &Rejection,
    rate_limits: Option<(&RouteState, &RateLimitOutcome)>,
    lifecycle_headers: LifecycleHeaders,
) -> Result<(), Reason> {
    let is_grpc = rejection.is_grpc(client.is_grpc());
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
        .flat_map(|(route, rate_limits)| rate_limit::limit_headers(route, rate_limits));
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

/// Builds the head of a rejection for a gRPC client: a response without messages
/// ("Trailers-Only", gRPC over HTTP/2).
fn grpc_head(rejection: &Rejection) -> pingora::Result<ResponseHeader> {
    let mut head = ResponseHeader::build(200, Some(8))?;
    head.insert_header("content-type", "application/grpc")?;
    for (name, value) in
        &grpc::status_trailers(rejection.grpc_status(), properties(rejection.reason).title)
    {
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
        properties(rejection.reason).title,
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
            headers,
            age,
            upstream_status,
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

/// Adds the fields of a stale response, and marks it as one with `age` and `cache-status` (RFC
/// 9211).
///
/// `upstream_status` is the status of the failed response, if there was one.
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

/// Adds the fields that name the sidecar as the origin of the response, and the reason.
fn add_proxy_status(
    mut head: ResponseHeader,
    rejection: &Rejection,
) -> pingora::Result<ResponseHeader> {
    let token = rejection.qualified_token();
    match properties(rejection.reason).proxy_error {
        Some(error) => head.insert_header(
            "proxy-status",
            format!(r#"{PSEUDONYM}; error={error}; details="{token}""#),
        )?,
        None => head.insert_header("proxy-status", PSEUDONYM)?,
    }
    head.insert_header("x-outrigger-reason", token)?;
    Ok(head)
}
