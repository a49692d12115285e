//! The life of a client's connection of HTTP/2: streams, each a request, until somebody has had enough.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use h2::{Reason, server::Builder};
use tokio::sync::watch;

use super::{
    super::{
        client::{Client, ClientStream, Peer},
        listener::Place,
        serve::{self, After},
        worker::Worker,
    },
    CONNECTION_WINDOW, SEND_BUFFER, STREAM_WINDOW,
    server::Exchange,
};
use crate::{clock, policy::document::Direction, telemetry::metrics::name, transport::paced::Paced};

/// Requests that a client may give up before it has an answer, beyond half of all, before its connection is ended: opening and
/// resetting streams in turn costs a client nothing and its server everything (CVE-2023-44487, "rapid reset").
const FREE_RESETS: usize = 200;

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
pub(in crate::proxy) async fn serve(stream: Paced, peer: Peer, place: Place, worker: Arc<Worker>, mut closing: watch::Receiver<bool>) {
    let limits = place.shared().spec.load().limits;
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(limits.max_concurrent_streams)
        .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX))
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER);
    let Ok(Ok(mut connection)) = clock::within(Some(limits.header_timeout), builder.handshake(stream)).await else { return };
    let counts = Arc::new(Counts::default());
    let mut active: Instant = clock::now();
    let mut is_leaving = false;
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
                    if is_abused(&counts) {
                        worker.state.telemetry.metrics.counter(name::CONNECTIONS_ABUSED, &[("listener", &place.shared().spec.load().name)]).increment(1);
                        connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                    }
                    if !is_leaving && is_draining(&place, &worker) {
                        is_leaving = true;
                        connection.graceful_shutdown();
                    }
                }
                // The connection is over, or broken; what was served on it is, too.
                Some(Err(_)) | None => return,
            },
            _ = closing.wait_for(|is_closing| *is_closing), if !is_leaving => {
                is_leaving = true;
                connection.graceful_shutdown();
            }
            () = clock::sleep_until(active + idle), if !is_leaving => {
                if counts.streams.load(Ordering::Relaxed) == 0 {
                    is_leaving = true;
                    connection.graceful_shutdown();
                } else {
                    active = clock::now();
                }
            }
        }
    }
}

/// Whether this instance is leaving, as its callers see it.
fn is_draining(place: &Place, worker: &Worker) -> bool {
    place.shared().spec.load().direction == Direction::Inbound && worker.state.lifecycle.is_draining()
}

fn is_abused(counts: &Counts) -> bool {
    let given_up = counts.given_up.load(Ordering::Relaxed);
    given_up > FREE_RESETS && given_up * 2 > counts.all.load(Ordering::Relaxed)
}

async fn one_request(mut client: Client, worker: Arc<Worker>, counted: Counted) {
    let after = serve::serve(&worker, &mut client, false).await;
    if after == After::Close && client.sent() == 0 {
        counted.0.given_up.fetch_add(1, Ordering::Relaxed);
    }
}
