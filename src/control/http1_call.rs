//! Sends one HTTP/1 request that originates in the sidecar: an active check, an app probe or a
//! webhook.
//!
//! This module does not know why the request is sent, it applies no timeout, and it never
//! reuses a connection.

use bytes::Bytes;
use http::HeaderMap;
use pingora::{http::RequestHeader, protocols::http::v1::client::HttpSession};

use crate::transport::queued_stream::QueuedStream;

/// Value of the `user-agent` header of requests that originate in the sidecar.
pub(super) const USER_AGENT: &str = concat!("outrigger/", env!("CARGO_PKG_VERSION"));

/// Response to a request of the sidecar.
#[derive(Debug)]
pub(super) struct Http1Response {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    /// Response body, truncated to the `max_body` of the caller.
    pub(super) body: Vec<u8>,
}

/// Sends a request on a new connection, and reads the response head and at most `max_body`
/// bytes of the body.
///
/// Informational (1xx) responses are skipped.
///
/// # Errors
/// A message such as a failed read, a failed write or a response that is not HTTP.
pub(super) async fn send_request(
    connection: QueuedStream,
    request: Box<RequestHeader>,
    body: Bytes,
    max_body: usize,
) -> Result<Http1Response, String> {
    let handle = connection.handle().clone();
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
    handle
        .flush()
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

/// Builds the head of a request. It contains `connection: close`, because the connection
/// carries no second request.
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
