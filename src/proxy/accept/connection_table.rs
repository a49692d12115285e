//! The open client connections of a worker, with what each of them waits for.
//!
//! A connection announces only a change of its activity, which costs one store. Times are
//! measured by the reader of the table, and only under memory pressure. The module does not
//! decide which connections are closed; `memory_relief` does.

use std::sync::{
    Arc,
    atomic::{AtomicU8, AtomicU32, Ordering},
};

use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::Notify;

use crate::{resilience::memory_pressure::WaitKind, transport::queued_stream::ConnectionHandle};

/// What a client connection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectionActivity {
    /// It completes the TLS handshake.
    Handshake,
    /// It waits for the next request.
    Idle,
    /// It reads a request head of HTTP/1.
    RequestHead,
    /// It serves a request of HTTP/1.
    Request,
    /// It serves any number of HTTP/2 streams.
    Streams,
    /// It was closed to release memory, and its tasks end.
    Closing,
}

impl ConnectionActivity {
    const ALL: [Self; 6] = [
        Self::Handshake,
        Self::Idle,
        Self::RequestHead,
        Self::Request,
        Self::Streams,
        Self::Closing,
    ];
}

/// Client connection, as its table shows it.
#[derive(Debug)]
pub(crate) struct TrackedConnection {
    pub(crate) handle: Arc<ConnectionHandle>,
    /// Position of the activity in [`ConnectionActivity::ALL`].
    activity: AtomicU8,
    /// Number of changes of the activity, so that a reader recognizes a new wait.
    change_count: AtomicU32,
    /// Number of HTTP/2 streams whose request task is running.
    pub(crate) open_streams: Arc<AtomicU32>,
    /// Number of HTTP/2 streams that wait for their client to send or to read.
    pub(crate) stalled_streams: Arc<AtomicU32>,
    /// Notified when an idle HTTP/2 connection must close.
    pub(crate) close_requested: Notify,
}

/// Open client connections of one worker. The lock covers one change, or one look at all of them.
#[derive(Debug, Default)]
pub(crate) struct ConnectionTable(Mutex<Slab<Arc<TrackedConnection>>>);

/// Entry of an open connection. A drop removes it.
#[derive(Debug)]
pub(crate) struct ConnectionEntry {
    table: Arc<ConnectionTable>,
    key: usize,
    pub(crate) connection: Arc<TrackedConnection>,
}

impl TrackedConnection {
    /// Announces a new activity. A connection that closes has no other activity.
    ///
    /// Only tasks of the worker of the connection may call it, so that no other call interferes.
    pub(crate) fn set_activity(&self, activity: ConnectionActivity) {
        if self.is_closing() {
            return;
        }
        self.activity.store(activity as u8, Ordering::Relaxed);
        self.change_count.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns whether the connection speaks HTTP/2.
    pub(crate) fn is_http2(&self) -> bool {
        self.activity.load(Ordering::Relaxed) == ConnectionActivity::Streams as u8
    }

    /// Returns whether the connection was closed to release memory.
    pub(crate) fn is_closing(&self) -> bool {
        self.activity.load(Ordering::Relaxed) == ConnectionActivity::Closing as u8
    }

    /// Returns the number of changes of the activity so far.
    pub(crate) fn change_count(&self) -> u32 {
        self.change_count.load(Ordering::Relaxed)
    }

    /// Returns what the connection waits for, if it may be closed to release memory.
    ///
    /// A request that waits for its backend is never closed.
    pub(crate) fn waits_for(&self) -> Option<WaitKind> {
        match ConnectionActivity::ALL[usize::from(self.activity.load(Ordering::Relaxed))] {
            ConnectionActivity::Handshake => Some(WaitKind::Handshake),
            ConnectionActivity::Idle => Some(WaitKind::Idle),
            ConnectionActivity::RequestHead => Some(WaitKind::RequestHead),
            ConnectionActivity::Streams if self.open_streams.load(Ordering::Relaxed) == 0 => {
                Some(WaitKind::Idle)
            }
            // After GOAWAY, a client may still have opened streams.
            ConnectionActivity::Streams | ConnectionActivity::Closing => {
                let open = self.open_streams.load(Ordering::Relaxed);
                let are_stalled = open > 0 && self.stalled_streams.load(Ordering::Relaxed) >= open;
                (are_stalled && !self.handle.is_shut_down()).then_some(WaitKind::Streams)
            }
            ConnectionActivity::Request if !self.handle.is_flushed() => Some(WaitKind::Response),
            ConnectionActivity::Request if self.handle.awaits_body() => Some(WaitKind::RequestBody),
            ConnectionActivity::Request => None,
        }
    }
}

impl ConnectionTable {
    /// Adds an open connection, and returns the entry that removes it again.
    pub(crate) fn add(
        self: &Arc<Self>,
        handle: Arc<ConnectionHandle>,
        activity: ConnectionActivity,
    ) -> ConnectionEntry {
        let connection = Arc::new(TrackedConnection {
            handle,
            activity: AtomicU8::new(activity as u8),
            change_count: AtomicU32::new(0),
            open_streams: Arc::default(),
            stalled_streams: Arc::default(),
            close_requested: Notify::new(),
        });
        ConnectionEntry {
            table: self.clone(),
            key: self.0.lock().insert(connection.clone()),
            connection,
        }
    }

    /// Calls `visit` with each connection and its key. A key can be reused by a later connection.
    pub(crate) fn visit(&self, mut visit: impl FnMut(usize, &Arc<TrackedConnection>)) {
        for (key, connection) in self.0.lock().iter() {
            visit(key, connection);
        }
    }
}

impl Drop for ConnectionEntry {
    fn drop(&mut self) {
        self.table.0.lock().remove(self.key);
    }
}
