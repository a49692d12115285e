//! Serves the requests of one HTTP/1 connection in sequence, and decides when the connection
//! closes.
//!
//! It bounds the time and the size of each request head. It rejects a head that exceeds them or
//! is malformed; such a request has no route. A connection closes after an idle timeout, after
//! a response that closes it, or when its listener closes. The module does not route requests;
//! `serve` does.

use std::{sync::Arc, time::Duration};

use bytes::BytesMut;
use pingora::protocols::{Stream, http::ServerSession};
use tokio::sync::watch;

use crate::{
    clock,
    proxy::{
        accept::listener_context::{ConnectionPermit, ListenerContext, ListenerState},
        downstream::client::{Client, ConnectionDisposition, DownstreamHttp1, DownstreamStream},
        headers::lifecycle::LifecycleHeaders,
        request::{rejection::Rejection, view::ClientIdentity},
        response::write_rejection,
        serve,
        upstream::worker::Worker,
    },
    telemetry::reason::Reason,
    transport::queued_stream::{ConnectionHandle, QueuedStream},
};

/// Maximum time and number of bytes for which a closing connection reads and discards input.
///
/// Closing with unread input resets the connection, and the client could lose the response. The
/// time bounds the close of the proxy's side and the discarding separately.
const LINGER_LIMITS: (Duration, u64) = (Duration::from_secs(1), 1 << 20);

/// Serves the requests of a connection until it closes. The permit is released at that moment.
pub(crate) async fn serve(
    connection: QueuedStream,
    handle: Arc<ConnectionHandle>,
    identity: ClientIdentity,
    permit: ConnectionPermit,
    worker: Arc<Worker>,
    mut listener_state: watch::Receiver<ListenerState>,
) {
    let mut stream: Stream = Box::new(connection);
    let mut pipelined_bytes: Option<BytesMut> = None;
    let mut is_first = true;
    loop {
        let idle_timeout = permit.listener_context().spec.load().limits.idle_timeout;
        let bytes_received_at_start = handle.bytes_received();
        let has_more = pipelined_bytes.is_some() || (is_first && handle.has_replay_bytes());
        if !has_more && !wait_for_request(&handle, idle_timeout, &mut listener_state).await {
            return;
        }
        is_first = false;
        // Boxing keeps the future of an idle connection small.
        let next = Box::pin(serve_request(
            stream,
            pipelined_bytes.take(),
            (&handle, bytes_received_at_start),
            &identity,
            permit.listener_context(),
            &worker,
            &listener_state,
        ))
        .await;
        let Some((reused, next_pipelined_bytes)) = next else {
            return;
        };
        (stream, pipelined_bytes) = (reused, next_pipelined_bytes);
    }
}

/// Waits for the first byte of the next request.
///
/// Returns `false` after the idle timeout, on a broken connection, and when the listener state
/// is [`ListenerState::Closed`]. A client that closes the connection makes it readable, so the
/// result is then `true`.
pub(crate) async fn wait_for_request(
    handle: &ConnectionHandle,
    idle_timeout: Duration,
    listener_state: &mut watch::Receiver<ListenerState>,
) -> bool {
    tokio::select! {
        biased;
        readable = clock::timeout(Some(idle_timeout), handle.readable()) => {
            matches!(readable, Ok(Ok(())))
        }
        _ = listener_state.wait_for(|state| *state == ListenerState::Closed) => false,
    }
}

/// Reads, serves and finishes one request.
///
/// Returns the stream and the bytes read beyond this request, if another request can follow.
/// Returns `None` if the connection closes.
async fn serve_request(
    stream: Stream,
    pipelined_bytes: Option<BytesMut>,
    (handle, bytes_received_at_start): (&Arc<ConnectionHandle>, u64),
    identity: &ClientIdentity,
    listener_context: &Arc<ListenerContext>,
    worker: &Arc<Worker>,
    listener_state: &watch::Receiver<ListenerState>,
) -> Option<(Stream, Option<BytesMut>)> {
    let limits = listener_context.spec.load().limits;
    let mut session = Box::new(ServerSession::new_http1(stream));
    // The timeout below covers the whole head; a session timeout would cover each read.
    session.set_read_timeout(None);
    session.set_pipelining_enabled(true);
    // pingora would close the connection after an interim response to an incomplete request.
    // The relay decides when the connection closes.
    session.set_close_on_response_before_downstream_finish(false);
    if let Some(pipelined_bytes) = pipelined_bytes {
        session.set_pipelined_prefix(pipelined_bytes);
    }
    let has_replay_bytes = handle.has_replay_bytes();
    handle.set_read_limit(Some(limits.max_header_bytes));
    let read = clock::timeout(Some(limits.header_timeout), session.read_request()).await;
    let is_header_too_large = handle.is_read_limit_reached();
    handle.set_read_limit(None);
    // The specification is loaded after the read, so that a request that waited during a reload
    // uses the current listener name.
    let stream = DownstreamStream::Http1(DownstreamHttp1 {
        session,
        handle: handle.clone(),
    });
    let mut client = Client {
        stream,
        identity: identity.clone(),
        listener: listener_context.spec.load_full(),
    };
    let reason = match read {
        Ok(Ok(true)) => {
            let is_closing = *listener_state.borrow() > ListenerState::Open;
            let disposition = serve::serve(worker, &mut client, is_closing).await;
            return finish_request(client, disposition).await;
        }
        // The client closed the connection before its next request.
        Ok(Ok(false)) => return None,
        // A connection that sent no byte is idle, so it closes without a response.
        Err(clock::Elapsed)
            if handle.bytes_received() == bytes_received_at_start && !has_replay_bytes =>
        {
            return None;
        }
        Err(clock::Elapsed) => Reason::HeaderTimeout,
        Ok(Err(_)) if is_header_too_large => Reason::HeaderTooLarge,
        // The client closed the connection within a head, so it cannot receive a response.
        Ok(Err(error))
            if matches!(
                error.etype,
                pingora::ErrorType::ConnectionClosed | pingora::ErrorType::ReadError
            ) =>
        {
            return None;
        }
        Ok(Err(_)) => Reason::BadRequest,
    };
    let active_policy = worker.state.active_policy.load();
    active_policy
        .unrouted_metrics
        .record_refusal(&worker.state.telemetry.metrics, reason);
    client.close_after_response();
    if write_rejection::send_rejection(
        &mut client,
        &Rejection::from_reason(reason),
        None,
        LifecycleHeaders::default(),
    )
    .await
    .is_ok()
    {
        linger(&mut client).await;
    }
    None
}

/// Returns the stream and the bytes read beyond this request, if the connection is reused.
/// Otherwise it closes the connection as the disposition requires.
async fn finish_request(
    mut client: Client,
    disposition: ConnectionDisposition,
) -> Option<(Stream, Option<BytesMut>)> {
    let DownstreamStream::Http1(http1) = &mut client.stream else {
        return None;
    };
    match disposition {
        ConnectionDisposition::Close => None,
        ConnectionDisposition::Reuse if http1.session.get_keepalive().is_some() => {
            let DownstreamStream::Http1(http1) = client.stream else {
                return None;
            };
            http1
                .session
                .finish()
                .await
                .ok()
                .flatten()
                .map(pingora::protocols::http::ReusableHttpStream::into_parts)
        }
        // The client may still be sending. An immediate close could lose the end of the
        // response.
        ConnectionDisposition::Reuse | ConnectionDisposition::Linger => {
            linger(&mut client).await;
            None
        }
    }
}

/// Closes the proxy's side, then reads and discards input until the client closes or a limit of
/// [`LINGER_LIMITS`] is reached.
///
/// An immediate close would reset the connection. The client could then lose the response
/// before it reads it.
async fn linger(client: &mut Client) {
    let DownstreamStream::Http1(http1) = &mut client.stream else {
        return;
    };
    // A client that no longer reads cannot receive the close, so the wait is bounded.
    _ = clock::timeout(Some(LINGER_LIMITS.0), http1.session.shutdown()).await;
    let handle = http1.handle.clone();
    let (time, bytes) = LINGER_LIMITS;
    let bytes_received_max = handle.bytes_received() + bytes;
    let discard_input = async {
        // A heap buffer keeps the future of every request small.
        let mut scratch = vec![0_u8; 4096];
        while handle.bytes_received() < bytes_received_max && handle.socket_readable().await.is_ok()
        {
            match handle.discard(&mut scratch) {
                Ok(true) => {}
                Ok(false) | Err(_) => break,
            }
        }
    };
    // The connection closes in both cases, so the result has no meaning.
    _ = clock::timeout(Some(time), discard_input).await;
}
