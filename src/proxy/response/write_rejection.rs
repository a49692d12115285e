//! Writes a response that the sidecar generates itself.
//!
//! Every such response names its reason: `proxy-status` (RFC 9209), `x-outrigger-reason`, and a
//! problem body (RFC 9457). A 429 or 503 also states when to retry, rounded up to whole seconds
//! so that no retry is too early.
//!
//! The module does not decide why a request is rejected.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;

use crate::{
    clock,
    message::{ResponseHead, framing::BodyFraming, headers::Headers},
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
/// If the client closed or received the response too slowly.
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
    let mut head = if is_grpc {
        grpc_head(rejection)
    } else {
        http_head(rejection, body.len())
    };
    add_proxy_status(&mut head.headers, rejection);
    if let Some((route, rate_limits)) = rate_limits {
        rate_limit::append_limit_headers(route, rate_limits, &mut head.headers);
    }
    for (name, value) in lifecycle_headers {
        head.headers.append(name, &*value);
    }
    client.write_head(&head)?;
    client.write(body)?;
    client.finish(None)?;
    clock::timeout(Some(client.listener.limits.idle_timeout), client.flush())
        .await
        .unwrap_or(Err(Reason::ClientClosed))
}

/// Builds the head of a rejection for a gRPC client: a response without messages
/// ("Trailers-Only", gRPC over HTTP/2).
fn grpc_head(rejection: &Rejection) -> ResponseHead {
    let mut head = ResponseHead::new(StatusCode::OK);
    head.headers.append("content-type", "application/grpc");
    let title = properties(rejection.reason).title;
    for (name, value) in grpc::status_trailers(rejection.grpc_status(), title).iter() {
        head.headers.append(name, value);
    }
    if let Some(wait) = rejection.retry_after {
        let millis = wait.as_nanos().div_ceil(1_000_000);
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        let millis = millis.min(i32::MAX.unsigned_abs().into());
        head.headers.append_number("grpc-retry-pushback-ms", millis);
    }
    head
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

fn http_head(rejection: &Rejection, length: usize) -> ResponseHead {
    let status = rejection.status();
    // Policies accept only valid statuses.
    let code = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut head = ResponseHead::new(code);
    let headers = &mut head.headers;
    match rejection.response_override.as_deref() {
        Some(ResponseOverride::Fallback { content_type, .. }) => {
            headers.append("content-type", content_type);
        }
        Some(ResponseOverride::Stale {
            headers: stale_headers,
            age,
            upstream_status,
            ..
        }) => {
            headers.clone_from(stale_headers);
            mark_stale(headers, *age, *upstream_status);
        }
        Some(ResponseOverride::Redirect { .. } | ResponseOverride::Fault(_)) | None => {
            headers.append("content-type", "application/problem+json");
        }
    }
    if !matches!(status, 204 | 304) {
        headers.insert_number("content-length", length as u64);
        head.framing = Ok(BodyFraming::Length(length as u64));
    }
    if let Some(ResponseOverride::Redirect { location, .. }) =
        rejection.response_override.as_deref()
    {
        headers.append("location", location);
    }
    if status == 405 {
        let methods = "GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH, TRACE";
        headers.append("allow", methods);
    }
    if matches!(status, 429 | 503) {
        let wait = rejection.retry_after.unwrap_or(DEFAULT_RETRY_AFTER);
        headers.insert_number("retry-after", round_up_to_seconds(wait));
    }
    head
}

/// Marks a response as a stale one with `age` and `cache-status` (RFC 9211).
///
/// `upstream_status` is the status of the failed response, if there was one.
fn mark_stale(headers: &mut Headers, age: Duration, upstream_status: Option<u16>) {
    headers.remove("transfer-encoding");
    headers.insert_number("age", age.as_secs());
    let cache_status = match upstream_status {
        Some(status) => {
            format!("{PSEUDONYM}; fwd=stale; fwd-status={status}; detail=stale-if-error")
        }
        None => format!("{PSEUDONYM}; hit; detail=stale-if-error"),
    };
    headers.append("cache-status", cache_status);
}

/// Adds the fields that name the sidecar as the origin of the response, and the reason.
fn add_proxy_status(headers: &mut Headers, rejection: &Rejection) {
    let token = to_quotable(rejection.qualified_token());
    match properties(rejection.reason).proxy_error {
        Some(error) => headers.insert(
            "proxy-status",
            format!(r#"{PSEUDONYM}; error={error}; details="{token}""#),
        ),
        None => headers.insert("proxy-status", PSEUDONYM),
    }
    headers.insert("x-outrigger-reason", token);
}

/// Replaces characters that a quoted string cannot hold. A policy can name a class or the path of a
/// socket with any characters.
fn to_quotable(text: String) -> String {
    let is_quotable =
        |character: char| matches!(character, ' '..='~') && !matches!(character, '"' | '\\');
    if text.chars().all(is_quotable) {
        return text;
    }
    let characters = text.chars();
    let replaced = characters.map(|character| {
        if is_quotable(character) {
            character
        } else {
            '?'
        }
    });
    replaced.collect()
}

#[cfg(test)]
mod tests;
