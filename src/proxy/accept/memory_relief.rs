//! Closes client connections of a worker while the memory budget is nearly used up.
//!
//! The task sleeps until the level of memory pressure rises. Then it looks at all connections in
//! short intervals, and closes those that `resilience::memory_pressure` selects. The module does
//! not know what a connection carries.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use crate::{
    clock,
    proxy::{
        accept::connection_table::{ConnectionActivity, ConnectionTable, TrackedConnection},
        upstream::worker::Worker,
    },
    resilience::memory_pressure::{CloseCandidate, MemoryLevel, WaitKind, select_closed},
    telemetry::memory_measure::MemoryMeasure,
};

/// Interval between two looks at the connections under memory pressure.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Connection at its last progress, as one of the looks has seen it.
struct LastProgress {
    connection: Arc<TrackedConnection>,
    change_count: u32,
    transferred_bytes: u64,
    seen_at: Instant,
}

/// Closes connections of a worker under memory pressure. Never returns.
pub(crate) async fn relieve_memory(worker: Arc<Worker>, table: Arc<ConnectionTable>) {
    let memory = &worker.state.memory;
    loop {
        memory.wait_for_pressure().await;
        let mut progress = HashMap::new();
        while memory.level() > MemoryLevel::Normal {
            close_connections(&worker, &table, &mut progress);
            clock::sleep(LOOK_INTERVAL).await;
            worker.observe_memory();
        }
    }
}

/// Looks at all connections once, and closes the selected ones.
fn close_connections(
    worker: &Worker,
    table: &ConnectionTable,
    progress: &mut HashMap<usize, LastProgress>,
) {
    let now = clock::now();
    let mut candidates = Vec::new();
    let mut seen = HashMap::with_capacity(progress.len());
    table.visit(|key, connection| {
        let waits_for = connection.waits_for();
        let last = last_progress(progress.remove(&key), connection, waits_for, now);
        if let Some(waits_for) = waits_for {
            candidates.push(CloseCandidate {
                key,
                waits_for,
                waited: now.saturating_duration_since(last.seen_at),
                requests: connection.stalled_streams.load(Ordering::Relaxed),
            });
        }
        seen.insert(key, last);
    });
    *progress = seen;
    let memory = &worker.state.memory;
    for closed in select_closed(memory.level(), &candidates) {
        // The tasks of the connection see its end, and release everything they hold.
        let connection = &progress[&closed.key].connection;
        let was_http2 = connection.is_http2();
        connection.set_activity(ConnectionActivity::Closing);
        match closed.waits_for {
            // It sends GOAWAY, so that its client knows which requests were not processed.
            WaitKind::Idle if was_http2 => connection.close_requested.notify_one(),
            WaitKind::Idle => connection.handle.shut_down(),
            _ => {
                // The kernel then releases what the client has not read.
                connection.handle.reset_on_close();
                connection.handle.shut_down();
            }
        }
        memory.record(MemoryMeasure::close(closed.waits_for));
    }
}

/// Returns the last progress of a connection, given that of the last look.
///
/// A slow request head is not progress, however many bytes of it arrive.
fn last_progress(
    last: Option<LastProgress>,
    connection: &Arc<TrackedConnection>,
    waits_for: Option<WaitKind>,
    now: Instant,
) -> LastProgress {
    let change_count = connection.change_count();
    let handle = &connection.handle;
    let transferred_bytes = match waits_for {
        Some(WaitKind::RequestBody) => handle.bytes_received(),
        Some(WaitKind::Response) => handle.bytes_acknowledged(),
        Some(WaitKind::Streams) => handle.bytes_received() + handle.bytes_acknowledged(),
        Some(WaitKind::Idle | WaitKind::Handshake | WaitKind::RequestHead) | None => 0,
    };
    last.filter(|last| {
        Arc::ptr_eq(&last.connection, connection)
            && last.change_count == change_count
            && last.transferred_bytes == transferred_bytes
    })
    .unwrap_or_else(|| LastProgress {
        connection: connection.clone(),
        change_count,
        transferred_bytes,
        seen_at: now,
    })
}
