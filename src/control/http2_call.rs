//! Sends one HTTP/2 request that originates in the sidecar: an active check or an app probe.
//!
//! This module does not know why the request is sent, it applies no timeout, and it never
//! reuses a connection.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request};
use tokio::task::JoinSet;

use crate::transport::{backpressured_stream::BackpressuredStream, queued_stream::QueuedStream};

/// Response to a request of the sidecar.
#[derive(Debug)]
pub(super) struct Http2Response {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    /// Response body, truncated to the `max_body` of the caller.
    pub(super) body: Bytes,
    pub(super) trailers: HeaderMap,
}

/// Sends a request on a new connection, and reads at most `max_body` bytes of the response
/// body.
///
/// The trailers are read only if the body ends within that limit; otherwise they are empty.
///
/// # Errors
/// A message that names the HTTP/2 error.
pub(super) async fn send_request(
    connection: QueuedStream,
    request: Request<()>,
    body: Bytes,
    max_body: usize,
) -> Result<Http2Response, String> {
    let (send, connection) = h2::client::handshake(BackpressuredStream(connection))
        .await
        .map_err(describe_error)?;
    // The set aborts the connection task when this future completes or is dropped: no other
    // request uses the connection.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    run_stream(send, request, body, max_body).await
}

async fn run_stream(
    send: h2::client::SendRequest<Bytes>,
    request: Request<()>,
    body: Bytes,
    max_body: usize,
) -> Result<Http2Response, String> {
    let mut send = send.ready().await.map_err(describe_error)?;
    let (response, mut stream) = send
        .send_request(request, body.is_empty())
        .map_err(describe_error)?;
    if !body.is_empty() {
        stream.send_data(body, true).map_err(describe_error)?;
    }
    let (parts, mut incoming) = response.await.map_err(describe_error)?.into_parts();
    let (mut read, mut trailers) = (BytesMut::new(), HeaderMap::new());
    while read.len() < max_body || incoming.is_end_stream() {
        let Some(piece) = incoming.data().await else {
            trailers = incoming
                .trailers()
                .await
                .map_err(describe_error)?
                .unwrap_or_default();
            break;
        };
        let piece = piece.map_err(describe_error)?;
        // This cannot fail: the released amount has just been received.
        _ = incoming.flow_control().release_capacity(piece.len());
        read.extend_from_slice(&piece);
    }
    read.truncate(max_body);
    Ok(Http2Response {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: read.freeze(),
        trailers,
    })
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn describe_error(error: h2::Error) -> String {
    format!("http2: {error}")
}
