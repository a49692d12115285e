//! Serves the requests of one HTTP/1 connection in sequence, and decides when the connection
//! closes.
//!
//! It bounds the time and the size of each request head. It rejects a head that exceeds them or
//! is malformed; such a request has no route. A connection closes after an idle timeout, after
//! a response that closes it, or when its listener closes. The module does not route requests;
//! `serve` does.

use std::{sync::Arc, time::Duration};

use bytes::BytesMut;
use tokio::sync::watch;

use crate::{
    clock,
    proxy::{
        accept::{
            connection_table::{ConnectionActivity, ConnectionEntry},
            listener_context::{ConnectionPermit, ListenerState, OpenConnection},
        },
        downstream::{
            client::{Client, ConnectionDisposition, DownstreamStream},
            http1_stream::{DownstreamHttp1, HeadError},
        },
        headers::lifecycle::LifecycleHeaders,
        request::{rejection::Rejection, view::ClientIdentity},
        response::write_rejection,
        serve,
        upstream::worker::Worker,
        wire::http1::head::{HeadLimits, InvalidRequestHead},
    },
    telemetry::reason::Reason,
    transport::queued_stream::{ConnectionHandle, QueuedStream},
};

/// Maximum time and number of bytes for which a closing connection reads and discards input.
///
/// Closing with unread input resets the connection, and the client could lose the response. The
/// time bounds the close of the proxy's side and the discarding separately.
const LINGER_LIMITS: (Duration, u64) = (Duration::from_secs(1), 1 << 20);

/// HTTP/1 connection of a client, with everything that its requests share.
struct DownstreamConnection {
    /// Dropped first: a client that observes the close may connect again at once.
    permit: ConnectionPermit,
    entry: ConnectionEntry,
    identity: ClientIdentity,
    worker: Arc<Worker>,
    listener_state: watch::Receiver<ListenerState>,
}

/// Stream of a connection between two requests.
struct ReusableStream {
    stream: QueuedStream,
    /// Bytes that were read beyond the last request.
    pipelined_bytes: BytesMut,
}

/// How the wait for a request head ended.
enum HeadOutcome {
    /// The head is complete and well-formed.
    Complete,
    /// The connection is idle or closed by its client, so it closes without a response.
    Closed,
    /// The head is malformed, too large or too slow.
    Rejected(Reason),
}

/// What follows after a request.
enum ServedRequest {
    Reuse(ReusableStream),
    /// The client may still be sending. An immediate close could lose the end of the response.
    Linger(Box<DownstreamHttp1>),
    Close,
}

/// Serves the requests of a connection until it closes. The permit is released at that moment.
pub(crate) async fn serve(
    open: OpenConnection,
    worker: Arc<Worker>,
    listener_state: watch::Receiver<ListenerState>,
) {
    let mut connection = DownstreamConnection {
        permit: open.permit,
        entry: open.entry,
        identity: open.identity,
        worker,
        listener_state,
    };
    let mut next = ReusableStream {
        stream: open.stream,
        pipelined_bytes: BytesMut::new(),
    };
    let mut is_first = true;
    loop {
        let bytes_received_at_start = connection.handle().bytes_received();
        let has_more = !next.pipelined_bytes.is_empty()
            || (is_first && connection.handle().has_replay_bytes());
        if !has_more {
            connection.set_activity(ConnectionActivity::Idle);
            if !connection.wait_for_next_request().await {
                return;
            }
        }
        // A connection that was closed to release memory must not execute a request.
        if connection.entry.connection.is_closing() {
            return;
        }
        connection.set_activity(ConnectionActivity::RequestHead);
        is_first = false;
        let mut http1 = Box::new(DownstreamHttp1::new(next.stream, next.pipelined_bytes));
        let outcome = connection
            .read_head(&mut http1, bytes_received_at_start)
            .await;
        if connection.entry.connection.is_closing() {
            return;
        }
        connection.set_activity(ConnectionActivity::Request);
        // Boxing keeps the future of a connection without a request small.
        let served = Box::pin(connection.serve_request(http1, outcome)).await;
        let reusable = match served {
            ServedRequest::Reuse(reusable) => reusable,
            ServedRequest::Linger(http1) => return linger(http1).await,
            ServedRequest::Close => return,
        };
        next = reusable;
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

impl DownstreamConnection {
    fn handle(&self) -> &ConnectionHandle {
        &self.entry.connection.handle
    }

    /// Announces what the connection does now.
    fn set_activity(&self, activity: ConnectionActivity) {
        self.entry.connection.set_activity(activity);
    }

    /// Waits for the first byte of the next request, as [`wait_for_request`] does.
    async fn wait_for_next_request(&mut self) -> bool {
        let idle_timeout = self
            .permit
            .listener_context()
            .spec
            .load()
            .limits
            .idle_timeout;
        wait_for_request(
            &self.entry.connection.handle,
            idle_timeout,
            &mut self.listener_state,
        )
        .await
    }

    /// Serves a request whose head was read, or rejects the head.
    async fn serve_request(
        &self,
        http1: Box<DownstreamHttp1>,
        outcome: HeadOutcome,
    ) -> ServedRequest {
        // The specification is loaded after the read, so that a request that waited during a
        // reload uses the current listener name.
        let mut client = Client {
            stream: DownstreamStream::Http1(http1),
            identity: self.identity.clone(),
            listener: self.permit.listener_context().spec.load_full(),
        };
        match outcome {
            HeadOutcome::Complete => {
                let is_closing = *self.listener_state.borrow() > ListenerState::Open;
                let disposition = serve::serve(&self.worker, &mut client, is_closing).await;
                finish_request(client, disposition)
            }
            HeadOutcome::Closed => ServedRequest::Close,
            HeadOutcome::Rejected(reason) => self.reject_head(client, reason).await,
        }
    }

    /// Reads a request head within the time and the size that the listener permits.
    async fn read_head(
        &self,
        http1: &mut DownstreamHttp1,
        bytes_received_at_start: u64,
    ) -> HeadOutcome {
        let limits = self.permit.listener_context().spec.load().limits;
        let has_bytes = self.handle().has_replay_bytes() || http1.has_unread_input();
        let head_limits = HeadLimits {
            max_bytes: limits.max_header_bytes,
            max_fields: limits.max_headers,
        };
        let read = http1.read_head(head_limits, || self.worker.memory_level());
        match clock::timeout(Some(limits.header_timeout), read).await {
            Ok(Ok(())) => HeadOutcome::Complete,
            Ok(Err(HeadError::OutOfMemory)) => HeadOutcome::Rejected(Reason::Memory),
            // The client cannot receive a response.
            Ok(Err(HeadError::Closed)) => HeadOutcome::Closed,
            Ok(Err(HeadError::Invalid(InvalidRequestHead::TooLarge))) => {
                HeadOutcome::Rejected(Reason::HeaderTooLarge)
            }
            Ok(Err(HeadError::Invalid(InvalidRequestHead::Malformed))) => {
                HeadOutcome::Rejected(Reason::BadRequest)
            }
            // A connection that sent no byte is idle, so it closes without a response.
            Err(clock::Elapsed)
                if self.handle().bytes_received() == bytes_received_at_start && !has_bytes =>
            {
                HeadOutcome::Closed
            }
            Err(clock::Elapsed) => HeadOutcome::Rejected(Reason::HeaderTimeout),
        }
    }

    /// Counts and sends the rejection of a head, which belongs to no route. The connection then
    /// closes.
    async fn reject_head(&self, mut client: Client, reason: Reason) -> ServedRequest {
        let state = &self.worker.state;
        state
            .active_policy
            .load()
            .unrouted_metrics
            .record_refusal(&state.telemetry.metrics, reason);
        client.close_after_response();
        let rejection = Rejection::from_reason(reason);
        let lifecycle_headers = LifecycleHeaders::default();
        let sent =
            write_rejection::send_rejection(&mut client, &rejection, None, lifecycle_headers);
        match sent.await {
            Ok(()) => finish_request(client, ConnectionDisposition::Linger),
            Err(_) => ServedRequest::Close,
        }
    }
}

/// Returns the stream for the next request if the connection is reused, or else how it closes.
fn finish_request(client: Client, disposition: ConnectionDisposition) -> ServedRequest {
    match (disposition, client.stream) {
        (ConnectionDisposition::Reuse, DownstreamStream::Http1(http1)) if http1.keeps_alive() => {
            let (stream, pipelined_bytes) = http1.into_parts();
            ServedRequest::Reuse(ReusableStream {
                stream,
                pipelined_bytes,
            })
        }
        (ConnectionDisposition::Close, _) | (_, DownstreamStream::Http2(_)) => ServedRequest::Close,
        (_, DownstreamStream::Http1(http1)) => ServedRequest::Linger(http1),
    }
}

/// Closes the proxy's side, then reads and discards input until the client closes or a limit of
/// [`LINGER_LIMITS`] is reached.
///
/// An immediate close would reset the connection. The client could then lose the response
/// before it reads it.
async fn linger(mut http1: Box<DownstreamHttp1>) {
    http1.discard_input();
    // A client that no longer reads cannot receive the close, so the wait is bounded.
    _ = clock::timeout(Some(LINGER_LIMITS.0), http1.shutdown()).await;
    let handle = http1.handle().clone();
    let (time, bytes) = LINGER_LIMITS;
    let bytes_received_max = handle.bytes_received() + bytes;
    let discard_input = async {
        while handle.bytes_received() < bytes_received_max && handle.bytes_arrived().await.is_ok() {
            // The buffer does not live while the connection waits.
            match handle.discard(&mut [0_u8; 4096]) {
                Ok(true) => {}
                Ok(false) | Err(_) => break,
            }
        }
    };
    // The connection closes in both cases, so the result has no meaning.
    _ = clock::timeout(Some(time), discard_input).await;
}
