//! One call of our own over HTTP/2: a health check.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request};
use tokio::task::JoinSet;

use crate::transport::{backpressured_stream::BackpressuredStream, queued_stream::QueuedStream};

/// An answer.
#[derive(Debug)]
pub(super) struct Http2Response {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    /// Its body, or the beginning of it.
    pub(super) body: Bytes,
    pub(super) trailers: HeaderMap,
}

/// Asks on a new connection, and reads the answer; of its body at most `max_body` bytes, and the trailers if there was no more.
///
/// # Errors
/// What went wrong, in words.
pub(super) async fn send_request(
    connection: QueuedStream,
    request: Request<()>,
    body: Bytes,
    max_body: usize,
) -> Result<Http2Response, String> {
    let (send, connection) = h2::client::handshake(BackpressuredStream(connection))
        .await
        .map_err(describe_error)?;
    // It ends with this call, even if that is given up: nothing else is asked on it.
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
        // A window is never too small for so little.
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
