//! One HTTP/1 call of our own: a health check, or a webhook.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use pingora::{http::RequestHeader, protocols::http::v1::client::HttpSession};

use crate::transport::queued_stream::{ConnectionHandle, QueuedStream};

/// What our own calls say of themselves.
pub(super) const USER_AGENT: &str = concat!("outrigger/", env!("CARGO_PKG_VERSION"));

/// An answer.
#[derive(Debug)]
pub(super) struct Http1Response {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    /// Its body, or the beginning of it.
    pub(super) body: Vec<u8>,
}

/// Asks on a new connection, and reads the head of the answer and at most `max_body` bytes of its body.
///
/// # Errors
/// What went wrong, in words: refused, timed out, reset, not HTTP.
pub(super) async fn send_request(
    (connection, wire): (QueuedStream, Arc<ConnectionHandle>),
    request: Box<RequestHeader>,
    body: Bytes,
    max_body: usize,
) -> Result<Http1Response, String> {
    let mut session = HttpSession::new(Box::new(connection));
    let failed = |error: Box<pingora::Error>| {
        format!(
            "{}: {}",
            error.etype.as_str(),
            error
                .context
                .as_ref()
                .map_or("", |context| context.as_str())
        )
    };
    session
        .write_request_header(request)
        .await
        .map_err(failed)?;
    if !body.is_empty() {
        session.write_body(&body).await.map_err(failed)?;
    }
    session.finish_body().await.map_err(failed)?;
    wire.flush()
        .await
        .map_err(|error| format!("write: {error}"))?;
    let status = loop {
        session.read_response().await.map_err(failed)?;
        match session.get_status() {
            Some(status) if !status.is_informational() => break status.as_u16(),
            _ => {}
        }
    };
    let head = session
        .resp_header()
        .map(|head| head.headers.clone())
        .unwrap_or_default();
    let mut body = Vec::new();
    while body.len() < max_body
        && let Some(chunk) = session.read_body_bytes().await.map_err(failed)?
    {
        body.extend_from_slice(&chunk);
    }
    body.truncate(max_body);
    Ok(Http1Response {
        status,
        headers: head,
        body,
    })
}

/// The head of a call; `connection: close`, since there is no next one.
pub(super) fn build_request_head(
    method: &str,
    path: &str,
    host: &str,
    body: &Bytes,
) -> Result<Box<RequestHeader>, String> {
    let build = || -> pingora::Result<RequestHeader> {
        let mut head = RequestHeader::build(method, path.as_bytes(), Some(6))?;
        head.insert_header("host", host)?;
        head.insert_header("user-agent", USER_AGENT)?;
        head.insert_header("connection", "close")?;
        if !body.is_empty() {
            head.insert_header("content-type", "application/json")?;
            head.insert_header("content-length", body.len())?;
        }
        Ok(head)
    };
    build().map(Box::new).map_err(|error| error.to_string())
}
