//! The life of a client's connection of HTTP/2: streams, each a request, until somebody has had enough.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use h2::{Reason, server::Builder};
use tokio::sync::watch;

use crate::{
    clock,
    policy::document::Direction,
    proxy::{
        accept::listener_context::{ConnectionPermit, ListenerState},
        downstream::{
            client::{Client, DownstreamStream},
            http2::ServerStream,
        },
        request::view::ClientIdentity,
        serve,
        upstream::worker::Worker,
        wire::http2::{
            MAX_LOCAL_ERROR_RESETS, MAX_TRACKED_RESETS, SEND_BUFFER_BYTES,
            SMALL_FRAME_BUDGET_BYTES, STREAM_WINDOW_BYTES, connection_window_bytes,
        },
    },
    resilience::lifecycle::Stage,
    telemetry::metrics::name,
    transport::backpressured_stream::BackpressuredStream,
};

/// Requests that a client may give up before it has an answer, beyond half of all, before its connection is ended: opening and
/// resetting streams in turn costs a client nothing and its server everything (CVE-2023-44487, "rapid reset").
const PREMATURE_RESET_ALLOWANCE: usize = 200;

/// Streams whose windows a connection of a client holds open at once: who asks for more at a time than that shares them.
const MAX_STREAM_WINDOWS: u32 = 50;

/// A client that is told of the end and has nothing running gets so long to take note of it.
const GOAWAY_CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the streams of a connection share.
#[derive(Debug, Default)]
struct StreamCounters {
    open_count: AtomicUsize,
    opened_count: AtomicUsize,
    premature_resets: AtomicUsize,
}

/// A stream that is counted.
struct OpenStreamGuard(Arc<StreamCounters>);

impl Drop for OpenStreamGuard {
    fn drop(&mut self) {
        self.0.open_count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves a connection to its end.
pub(crate) async fn serve(
    stream: BackpressuredStream,
    identity: ClientIdentity,
    permit: ConnectionPermit,
    worker: Arc<Worker>,
    mut listener_state: watch::Receiver<ListenerState>,
) {
    let limits = permit.listener_context().spec.load().limits;
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(limits.max_concurrent_streams)
        .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX))
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(connection_window_bytes(
            limits.max_concurrent_streams.min(MAX_STREAM_WINDOWS),
        ))
        .data_frame_budget(SMALL_FRAME_BUDGET_BYTES)
        .max_concurrent_reset_streams(MAX_TRACKED_RESETS)
        .max_local_error_reset_streams(Some(MAX_LOCAL_ERROR_RESETS))
        .max_send_buffer_size(SEND_BUFFER_BYTES);
    let Ok(Ok(mut connection)) =
        clock::timeout(Some(limits.header_timeout), builder.handshake(stream)).await
    else {
        return;
    };
    let counters = Arc::new(StreamCounters::default());
    let mut last_active: Instant = clock::now();
    let mut is_shutting_down = false;
    let is_inbound = permit.listener_context().spec.load().direction == Direction::Inbound;
    let mut drain_stages = is_inbound.then(|| worker.state.drain.subscribe_stages());
    loop {
        let idle_timeout = permit.listener_context().spec.load().limits.idle_timeout;
        tokio::select! {
            biased;
            accepted = connection.accept() => match accepted {
                Some(Ok((request, response_sender))) => {
                    last_active = clock::now();
                    let client = Client { stream: DownstreamStream::Http2(Box::new(ServerStream::new(request, response_sender))), identity: identity.clone(), listener: permit.listener_context().spec.load_full() };
                    counters.open_count.fetch_add(1, Ordering::Relaxed);
                    counters.opened_count.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(serve_stream(client, worker.clone(), OpenStreamGuard(counters.clone())));
                    if is_abusive(&counters, limits.max_concurrent_streams) {
                        worker.state.telemetry.metrics.counter(name::CONNECTIONS_ABUSED, &[("listener", &permit.listener_context().spec.load().name)]).increment(1);
                        connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                    }
                }
                // The connection is over, or broken; what was served on it is, too.
                Some(Err(_)) | None => return,
            },
            () = wait_for_shutdown(&mut listener_state, &mut drain_stages, &counters), if !is_shutting_down => {
                is_shutting_down = true;
                // Only from now on it has its time to take note of it.
                last_active = clock::now();
                connection.graceful_shutdown();
            }
            () = clock::sleep_until(last_active + if is_shutting_down { GOAWAY_CLOSE_TIMEOUT } else { idle_timeout }) => {
                last_active = clock::now();
                if counters.open_count.load(Ordering::Relaxed) > 0 {
                    continue;
                }
                if is_shutting_down {
                    // It does not answer, or does not read: it has had its time.
                    return;
                }
                is_shutting_down = true;
                connection.graceful_shutdown();
            }
        }
    }
}

/// Waits until the client is to be told that the connection ends: its listener does, or this instance, as its callers see it. Who has only just come is
/// served once; told before, it could ask nothing on this connection.
async fn wait_for_shutdown(
    listener_state: &mut watch::Receiver<ListenerState>,
    drain_stages: &mut Option<watch::Receiver<Stage>>,
    counters: &StreamCounters,
) {
    let drain_started = async {
        match drain_stages
            .as_mut()
            .filter(|_| counters.opened_count.load(Ordering::Relaxed) > 0)
        {
            Some(drain_stages) => {
                drop(drain_stages.wait_for(|stage| *stage > Stage::Serving).await)
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = listener_state.wait_for(|listener_state| *listener_state > ListenerState::Open) => {}
        () = drain_started => {}
    }
}

/// Whether a client gives up most of what it asks, or more of that is still being cleared away than it may ask at once.
fn is_abusive(counters: &StreamCounters, max_streams: u32) -> bool {
    let premature_resets = counters.premature_resets.load(Ordering::Relaxed);
    let has_too_many_open_streams = counters.open_count.load(Ordering::Relaxed)
        > 2 * max_streams as usize + PREMATURE_RESET_ALLOWANCE;
    has_too_many_open_streams
        || (premature_resets > PREMATURE_RESET_ALLOWANCE
            && premature_resets * 2 > counters.opened_count.load(Ordering::Relaxed))
}

async fn serve_stream(mut client: Client, worker: Arc<Worker>, open_guard: OpenStreamGuard) {
    // A stream is over with its answer; there is nothing to be reused.
    _ = serve::serve(&worker, &mut client, false).await;
    if let DownstreamStream::Http2(stream) = &client.stream
        && stream.was_reset_prematurely()
    {
        open_guard
            .0
            .premature_resets
            .fetch_add(1, Ordering::Relaxed);
    }
}
