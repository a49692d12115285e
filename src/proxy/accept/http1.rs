//! The life of a connection of HTTP/1: request after request, until somebody has had enough.

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

/// What is read and thrown away of a request that was answered before its end, so that the client gets to read the answer: so
/// long, and so much.
const LINGER_LIMITS: (Duration, u64) = (Duration::from_secs(1), 1 << 20);

/// Serves a connection to its end.
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
        // The exchange is boxed, so that an idle connection holds little more than its socket.
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

/// Waits between two requests; `false` if there will be none.
pub(crate) async fn wait_for_request(
    handle: &ConnectionHandle,
    idle_timeout: Duration,
    listener_state: &mut watch::Receiver<ListenerState>,
) -> bool {
    tokio::select! {
        biased;
        readable = clock::timeout(Some(idle_timeout), handle.readable()) => matches!(readable, Ok(Ok(()))),
        _ = listener_state.wait_for(|listener_state| *listener_state == ListenerState::Closed) => false,
    }
}

/// Reads, serves and finishes one request; the stream and what was read too much, if another may follow.
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
    // Time is kept here, over the whole head and not over single reads.
    session.set_read_timeout(None);
    session.set_pipelining_enabled(true);
    // An interim answer must not end the connection; the relay decides.
    session.set_close_on_response_before_downstream_finish(false);
    if let Some(pipelined_bytes) = pipelined_bytes {
        session.set_pipelined_prefix(pipelined_bytes);
    }
    let has_replay_bytes = handle.has_replay_bytes();
    handle.set_read_limit(Some(limits.max_header_bytes));
    let read = clock::timeout(Some(limits.header_timeout), session.read_request()).await;
    let is_header_too_large = handle.is_read_limit_reached();
    handle.set_read_limit(None);
    // What was read while the policies changed is served under the name that they know.
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
        // Nothing came, or the client left in the middle of a head.
        Ok(Ok(false)) => return None,
        Err(clock::Elapsed)
            if handle.bytes_received() == bytes_received_at_start && !has_replay_bytes =>
        {
            return None;
        }
        Err(clock::Elapsed) => Reason::HeaderTimeout,
        Ok(Err(_)) if is_header_too_large => Reason::HeaderTooLarge,
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

async fn finish_request(
    mut client: Client,
    disposition: ConnectionDisposition,
) -> Option<(Stream, Option<BytesMut>)> {
    let DownstreamStream::Http1(http1) = &mut client.stream else {
        return None;
    };
    match disposition {
        ConnectionDisposition::Close => None,
        // The client may be sending already what will not be read; closing at once would cost it the end of the answer.
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
        ConnectionDisposition::Reuse | ConnectionDisposition::Linger => {
            linger(&mut client).await;
            None
        }
    }
}

/// Ends our side and takes in what the client is still sending. Closing at once would reset the connection, and the client
/// might lose the answer before it has read it.
async fn linger(client: &mut Client) {
    let DownstreamStream::Http1(http1) = &mut client.stream else {
        return;
    };
    // A client that takes nothing more cannot be told of the end.
    _ = clock::timeout(Some(LINGER_LIMITS.0), http1.session.shutdown()).await;
    let handle = http1.handle.clone();
    let (time, bytes) = LINGER_LIMITS;
    let bytes_received_max = handle.bytes_received() + bytes;
    let discard_input = async {
        // On the heap, so that it takes no room in every request's future.
        let mut scratch = vec![0_u8; 4096];
        while handle.bytes_received() < bytes_received_max && handle.socket_readable().await.is_ok()
        {
            match handle.discard(&mut scratch) {
                Ok(true) => {}
                Ok(false) | Err(_) => break,
            }
        }
    };
    // Enough patience was shown either way.
    _ = clock::timeout(Some(time), discard_input).await;
}
