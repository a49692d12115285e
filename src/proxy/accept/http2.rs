//! Serves the streams of one HTTP/2 client connection, and decides when the connection closes.
//!
//! Each stream carries one request and runs in its own task. The connection ends gracefully
//! with GOAWAY after an idle timeout, when its listener stops, or when the instance drains. It
//! ends abruptly if the client abuses stream resets. The module does not route requests;
//! `serve` does.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::Guard;
use bytes::Bytes;
use h2::{
    Reason, RecvStream,
    server::{Builder, SendResponse},
};
use http::Request;
use tokio::sync::watch;

use crate::{
    clock,
    policy::{
        document::Direction,
        snapshot::{ListenerLimitSpec, ListenerSpec},
    },
    proxy::{
        accept::{
            connection_table::{ConnectionActivity, ConnectionEntry},
            listener_context::{ConnectionPermit, ListenerState, OpenConnection},
            memory_gated_stream::MemoryGatedStream,
        },
        downstream::{
            client::{Client, DownstreamStream},
            http2::ServerStream,
        },
        request::view::ClientIdentity,
        serve,
        upstream::worker::Worker,
        wire::{
            http2::{
                MAX_LOCAL_ERROR_RESETS, MAX_TRACKED_RESETS, SEND_BUFFER_BYTES,
                SMALL_FRAME_BUDGET_BYTES, STREAM_WINDOW_BYTES, connection_window_bytes,
            },
            stall_counter::StallCounter,
        },
    },
    resilience::{lifecycle::Stage, memory_pressure::MemoryLevel},
    telemetry::memory_measure::MemoryMeasure,
};

/// Number of requests per connection that a client may cancel before their response ends,
/// whatever their share.
///
/// Above it, a connection on which more than half of all requests were cancelled closes. A
/// client opens and resets streams at almost no cost, but each one costs the server work
/// (CVE-2023-44487, "rapid reset").
const PREMATURE_RESET_ALLOWANCE: usize = 200;

/// Maximum number of full stream windows that the connection window holds. A client with more
/// concurrent streams shares the connection window among them.
const MAX_STREAM_WINDOWS: u32 = 50;

/// Maximum number of concurrent streams of a connection from the high level of memory pressure
/// on. Each stream costs a task, and one read can open a hundred.
const MAX_STREAMS_UNDER_PRESSURE: u32 = 10;

/// Maximum size of a request head that h2 decodes, in bytes.
///
/// The limit of the listener is usually lower. `downstream::framing` checks it and rejects only
/// the stream. h2 closes the whole connection for a head of more than 80 frames.
const MAX_RECEIVED_HEAD_BYTES: u32 = 1 << 20;

/// Time after which a connection without open streams closes, although its client has not
/// closed it after GOAWAY.
const GOAWAY_CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Stream counts of one connection.
#[derive(Debug, Default)]
struct StreamCounters {
    /// Number of streams since the start of the connection.
    opened_count: AtomicUsize,
    /// Number of streams that the client reset before their response ended.
    premature_resets: AtomicUsize,
}

/// Counts one stream as open until it is dropped.
struct OpenStreamGuard {
    open_streams: Arc<AtomicU32>,
    counters: Arc<StreamCounters>,
}

impl Drop for OpenStreamGuard {
    fn drop(&mut self) {
        self.open_streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Streams of one connection, with everything that their requests share.
struct ConnectionStreams {
    /// Dropped first: a client that observes the close may connect again at once.
    permit: ConnectionPermit,
    /// Keeps the socket open until the permit is released.
    entry: ConnectionEntry,
    identity: ClientIdentity,
    worker: Arc<Worker>,
    counters: Arc<StreamCounters>,
}

/// Serves the streams of a connection until it closes. The permit is released at that moment.
pub(crate) async fn serve(
    open: OpenConnection,
    worker: Arc<Worker>,
    mut listener_state: watch::Receiver<ListenerState>,
) {
    let limits = open.permit.listener_context().spec.load().limits;
    let (streams, stream) = ConnectionStreams::new(open, worker);
    let handshake = connection_builder(&limits).handshake(stream);
    let Ok(Ok(mut connection)) = clock::timeout(Some(limits.header_timeout), handshake).await
    else {
        return;
    };
    let mut last_active: Instant = clock::now();
    let mut is_shutting_down = false;
    let mut drain_stages = streams.subscribe_drain_stages();
    loop {
        let idle_timeout = streams.listener_spec().limits.idle_timeout;
        let close_timeout = if is_shutting_down {
            GOAWAY_CLOSE_TIMEOUT
        } else {
            idle_timeout
        };
        tokio::select! {
            biased;
            accepted = connection.accept() => match accepted {
                Some(Ok((request, response_sender))) => {
                    last_active = clock::now();
                    streams.spawn(request, response_sender);
                    if streams.is_abusive(limits.max_concurrent_streams) {
                        streams.record_abuse();
                        connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                    }
                }
                // The connection has ended or is broken. Its remaining streams then fail in
                // their own tasks.
                Some(Err(_)) | None => return,
            },
            () = streams.wait_for_shutdown(&mut listener_state, &mut drain_stages),
                if !is_shutting_down =>
            {
                is_shutting_down = true;
                // The timeout of the client counts from the GOAWAY frame.
                last_active = clock::now();
                connection.graceful_shutdown();
            }
            () = clock::sleep_until(last_active + close_timeout) => {
                last_active = clock::now();
                if streams.open_streams() > 0 {
                    continue;
                }
                if is_shutting_down {
                    // The client has not closed the connection in time.
                    return;
                }
                is_shutting_down = true;
                connection.graceful_shutdown();
            }
        }
    }
}

impl ConnectionStreams {
    /// Splits a connection into its stream and what its requests share.
    fn new(open: OpenConnection, worker: Arc<Worker>) -> (Self, MemoryGatedStream) {
        open.entry
            .connection
            .set_activity(ConnectionActivity::Streams);
        let streams = Self {
            permit: open.permit,
            entry: open.entry,
            identity: open.identity,
            worker: worker.clone(),
            counters: Arc::default(),
        };
        let stream = MemoryGatedStream::new(open.stream, worker);
        (streams, stream)
    }

    /// Returns whether a new stream is refused to save memory.
    fn is_refused(&self) -> bool {
        match self.worker.memory_level() {
            MemoryLevel::Normal | MemoryLevel::Elevated => false,
            MemoryLevel::High | MemoryLevel::Critical => {
                self.open_streams() >= MAX_STREAMS_UNDER_PRESSURE
                    || self.worker.is_memory_exhausted()
            }
        }
    }

    /// Returns whether the client resets most of its streams, or has more than twice
    /// `max_streams` open streams plus [`PREMATURE_RESET_ALLOWANCE`].
    ///
    /// A reset stream remains open here until its task ends. The number of open tasks can
    /// therefore exceed `max_streams`, the number of concurrent streams that the client may
    /// open.
    fn is_abusive(&self, max_streams: u32) -> bool {
        let premature_resets = self.counters.premature_resets.load(Ordering::Relaxed);
        let opened_count = self.counters.opened_count.load(Ordering::Relaxed);
        let max_open_streams = 2 * max_streams as usize + PREMATURE_RESET_ALLOWANCE;
        self.open_streams() as usize > max_open_streams
            || (premature_resets > PREMATURE_RESET_ALLOWANCE && premature_resets * 2 > opened_count)
    }

    /// Waits until the connection must start a graceful shutdown.
    ///
    /// It starts when the listener stops accepting connections, when memory is short and the
    /// connection is idle, or when the instance drains and the connection is inbound. A drain
    /// waits for the first stream of a new connection, because a GOAWAY before it would leave
    /// that connection useless.
    async fn wait_for_shutdown(
        &self,
        listener_state: &mut watch::Receiver<ListenerState>,
        drain_stages: &mut Option<watch::Receiver<Stage>>,
    ) {
        let drain_started = async {
            match drain_stages
                .as_mut()
                .filter(|_| self.counters.opened_count.load(Ordering::Relaxed) > 0)
            {
                Some(drain_stages) => {
                    drop(drain_stages.wait_for(|stage| *stage > Stage::Serving).await)
                }
                None => std::future::pending().await,
            }
        };
        let is_closing = |state: &ListenerState| *state > ListenerState::Open;
        tokio::select! {
            _ = listener_state.wait_for(is_closing) => {}
            () = self.entry.connection.close_requested.notified() => {}
            () = drain_started => {}
        }
    }

    /// Returns the number of streams whose request task is running.
    fn open_streams(&self) -> u32 {
        self.entry.connection.open_streams.load(Ordering::Relaxed)
    }

    /// Returns the specification of the listener that is in force now.
    fn listener_spec(&self) -> Guard<Arc<ListenerSpec>> {
        self.permit.listener_context().spec.load()
    }

    /// Returns the stages of a drain of the instance, if a drain closes this connection.
    fn subscribe_drain_stages(&self) -> Option<watch::Receiver<Stage>> {
        let is_inbound = self.listener_spec().direction == Direction::Inbound;
        is_inbound.then(|| self.worker.state.drain.subscribe_stages())
    }

    /// Starts the task that serves a stream. If memory is short, the stream is refused before it
    /// costs anything, and its client may repeat the request.
    fn spawn(&self, request: Request<RecvStream>, mut response_sender: SendResponse<Bytes>) {
        if self.is_refused() {
            self.worker.state.memory.record(MemoryMeasure::RefuseStream);
            return response_sender.send_reset(Reason::REFUSED_STREAM);
        }
        let stall_counter = StallCounter::new(self.entry.connection.stalled_streams.clone());
        let stream = ServerStream::new(request, response_sender, stall_counter);
        let client = Client {
            stream: DownstreamStream::Http2(Box::new(stream)),
            identity: self.identity.clone(),
            listener: self.permit.listener_context().spec.load_full(),
        };
        let open_streams = self.entry.connection.open_streams.clone();
        open_streams.fetch_add(1, Ordering::Relaxed);
        self.counters.opened_count.fetch_add(1, Ordering::Relaxed);
        let guard = OpenStreamGuard {
            open_streams,
            counters: self.counters.clone(),
        };
        tokio::spawn(serve_stream(client, self.worker.clone(), guard));
    }

    /// Counts a connection that is closed because its client is abusive.
    fn record_abuse(&self) {
        let metrics = &self.worker.state.telemetry.metrics;
        metrics.record_abused_connection(&self.listener_spec().name);
    }
}

/// Returns the settings of a connection.
fn connection_builder(limits: &ListenerLimitSpec) -> Builder {
    let max_header_bytes = u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX);
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(limits.max_concurrent_streams)
        .max_header_list_size(MAX_RECEIVED_HEAD_BYTES.max(max_header_bytes))
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(connection_window_bytes(
            limits.max_concurrent_streams.min(MAX_STREAM_WINDOWS),
        ))
        .data_frame_budget(SMALL_FRAME_BUDGET_BYTES)
        .max_concurrent_reset_streams(MAX_TRACKED_RESETS)
        .max_local_error_reset_streams(Some(MAX_LOCAL_ERROR_RESETS))
        .max_send_buffer_size(SEND_BUFFER_BYTES);
    builder
}

/// Serves one stream, and counts it if the client reset it before its response ended.
async fn serve_stream(mut client: Client, worker: Arc<Worker>, open_guard: OpenStreamGuard) {
    // A stream carries only one request, so its disposition has no meaning.
    _ = serve::serve(&worker, &mut client, false).await;
    if let DownstreamStream::Http2(stream) = &client.stream
        && stream.was_reset_prematurely()
    {
        open_guard
            .counters
            .premature_resets
            .fetch_add(1, Ordering::Relaxed);
    }
}
