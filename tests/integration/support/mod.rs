//! Test support: scripted backends, a client that sends raw bytes, the sidecar on port 0, and the
//! functions that wait for a condition. Tests wait only through these functions.

pub(crate) mod admin;
pub(crate) mod backend;
pub(crate) mod certificates;
pub(crate) mod cgroup;
pub(crate) mod client;
pub(crate) mod fleet;
pub(crate) mod http2;
pub(crate) mod name_server;
pub(crate) mod nginx;
pub(crate) mod policy;
pub(crate) mod process;
pub(crate) mod redis;
pub(crate) mod sidecar;

use std::{
    future::Future,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

pub(crate) use backend::ScriptedBackend;
pub(crate) use client::{Client, ReceivedResponse};
pub(crate) use sidecar::Sidecar;

/// Longest time that an expected event may take on a slow machine.
pub(crate) const TEST_TIMEOUT: Duration = Duration::from_secs(20);

/// Starts a server that binds a port by its number. Another process may bind the port first, so a
/// start that returns `None` is repeated with other ports.
pub(crate) fn start_on_free_port<S>(start: impl Fn(SocketAddr) -> Option<S>) -> Option<S> {
    (0..5).find_map(|_| {
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = port.local_addr().unwrap();
        drop(port);
        start(address)
    })
}

/// Waits until a condition holds, and panics after [`TEST_TIMEOUT`].
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "not within {TEST_TIMEOUT:?}: {what}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until an asynchronous condition holds, and panics after [`TEST_TIMEOUT`].
pub(crate) async fn eventually_async<F: Future<Output = bool>>(
    what: &str,
    mut condition: impl FnMut() -> F,
) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !condition().await {
        assert!(
            Instant::now() < deadline,
            "not within {TEST_TIMEOUT:?}: {what}"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Simulates the service time of a backend or the pace of a client. It does not replace waiting for
/// a condition.
pub(crate) fn simulate_delay(duration: Duration) {
    std::thread::sleep(duration);
}

/// Temporary directory, removed on drop.
pub(crate) struct TempDirectory(PathBuf);

impl TempDirectory {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("outrigger-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes or replaces a file atomically: a reader never sees part of it.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let temporary_path = self.0.join(format!(".{name}.new"));
        std::fs::write(&temporary_path, text).unwrap();
        std::fs::rename(temporary_path, self.0.join(name)).unwrap();
    }
}

impl Drop for TempDirectory {
    fn drop(&mut self) {
        // The system removes the temporary files that remain.
        _ = std::fs::remove_dir_all(&self.0);
    }
}
