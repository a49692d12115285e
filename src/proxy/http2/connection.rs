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

use super::{
    super::{
        client::{Client, ClientStream, Peer},
        listener::{Closing, Place},
        serve,
        worker::Worker,
    },
    FORGIVEN_FRAMES, REMEMBERED_RESETS, SEND_BUFFER, SMALL_FRAMES, STREAM_WINDOW,
    connection_window,
    server::Exchange,
};
use crate::{
    clock, policy::document::Direction, resilience::lifecycle::Stage, telemetry::metrics::name,
    transport::paced::Paced,
};

/// Requests that a client may give up before it has an answer, beyond half of all, before its connection is ended: opening and
/// resetting streams in turn costs a client nothing and its server everything (CVE-2023-44487, "rapid reset").
const FREE_RESETS: usize = 200;

/// Streams whose windows a connection of a client holds open at once: who asks for more at a time than that shares them.
const MAX_WINDOWS: u32 = 50;

/// A client that is told of the end and has nothing running gets so long to take note of it.
const FAREWELL: Duration = Duration::from_secs(2);

/// What the streams of a connection share.
#[derive(Debug, Default)]
struct Counts {
    streams: AtomicUsize,
    all: AtomicUsize,
    given_up: AtomicUsize,
}

/// A stream that is counted.
struct Counted(Arc<Counts>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves a connection to its end.
pub(in crate::proxy) async fn serve(
    stream: Paced,
    peer: Peer,
    place: Place,
    worker: Arc<Worker>,
    mut closing: watch::Receiver<Closing>,
) {
    let limits = place.shared().spec.load().limits;
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(limits.max_concurrent_streams)
        .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX))
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(connection_window(
            limits.max_concurrent_streams.min(MAX_WINDOWS),
        ))
        .data_frame_budget(SMALL_FRAMES)
        .max_concurrent_reset_streams(REMEMBERED_RESETS)
        .max_local_error_reset_streams(Some(FORGIVEN_FRAMES))
        .max_send_buffer_size(SEND_BUFFER);
    let Ok(Ok(mut connection)) =
        clock::within(Some(limits.header_timeout), builder.handshake(stream)).await
    else {
        return;
    };
    let counts = Arc::new(Counts::default());
    let mut active: Instant = clock::now();
    let mut is_leaving = false;
    let is_inbound = place.shared().spec.load().direction == Direction::Inbound;
    let mut stages = is_inbound.then(|| worker.state.departure.stages());
    loop {
        let idle = place.shared().spec.load().limits.idle_timeout;
        tokio::select! {
            biased;
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    active = clock::now();
                    let client = Client { stream: ClientStream::Http2(Box::new(Exchange::new(request, respond))), peer: peer.clone(), listener: place.shared().spec.load_full() };
                    counts.streams.fetch_add(1, Ordering::Relaxed);
                    counts.all.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(one_request(client, worker.clone(), Counted(counts.clone())));
                    if is_abused(&counts, limits.max_concurrent_streams) {
                        worker.state.telemetry.metrics.counter(name::CONNECTIONS_ABUSED, &[("listener", &place.shared().spec.load().name)]).increment(1);
                        connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                    }
                }
                // The connection is over, or broken; what was served on it is, too.
                Some(Err(_)) | None => return,
            },
            () = has_to_end(&mut closing, &mut stages, &counts), if !is_leaving => {
                is_leaving = true;
                // Only from now on it has its time to take note of it.
                active = clock::now();
                connection.graceful_shutdown();
            }
            () = clock::sleep_until(active + if is_leaving { FAREWELL } else { idle }) => {
                active = clock::now();
                if counts.streams.load(Ordering::Relaxed) > 0 {
                    continue;
                }
                if is_leaving {
                    // It does not answer, or does not read: it has had its time.
                    return;
                }
                is_leaving = true;
                connection.graceful_shutdown();
            }
        }
    }
}

/// Waits until the client is to be told that the connection ends: its listener does, or this instance, as its callers see it. Who has only just come is
/// served once; told before, it could ask nothing on this connection.
async fn has_to_end(
    closing: &mut watch::Receiver<Closing>,
    stages: &mut Option<watch::Receiver<Stage>>,
    counts: &Counts,
) {
    let leaves = async {
        match stages
            .as_mut()
            .filter(|_| counts.all.load(Ordering::Relaxed) > 0)
        {
            Some(stages) => drop(stages.wait_for(|stage| *stage > Stage::Serving).await),
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = closing.wait_for(|closing| *closing > Closing::Open) => {}
        () = leaves => {}
    }
}

/// Whether a client gives up most of what it asks, or more of that is still being cleared away than it may ask at once.
fn is_abused(counts: &Counts, max_streams: u32) -> bool {
    let given_up = counts.given_up.load(Ordering::Relaxed);
    let lingering = counts.streams.load(Ordering::Relaxed) > 2 * max_streams as usize + FREE_RESETS;
    lingering || (given_up > FREE_RESETS && given_up * 2 > counts.all.load(Ordering::Relaxed))
}

async fn one_request(mut client: Client, worker: Arc<Worker>, counted: Counted) {
    // A stream is over with its answer; there is nothing to be reused.
    _ = serve::serve(&worker, &mut client, false).await;
    if let ClientStream::Http2(exchange) = &client.stream
        && exchange.was_given_up()
    {
        counted.0.given_up.fetch_add(1, Ordering::Relaxed);
    }
}
