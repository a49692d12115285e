//! What the tests stand on: a scripted backend, a client that says exactly what it is told, the sidecar on port 0, and the one
//! way to wait; nothing else may.

pub(crate) mod backend;
pub(crate) mod certificates;
pub(crate) mod client;
pub(crate) mod fleet;
pub(crate) mod http2;
pub(crate) mod name_server;
pub(crate) mod policy;
pub(crate) mod process;
pub(crate) mod redis;
pub(crate) mod sidecar;

use std::{
    future::Future,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

pub(crate) use backend::ScriptedBackend;
pub(crate) use client::{Client, ReceivedResponse};
pub(crate) use sidecar::Sidecar;

/// How long anything that should happen may take on a slow machine.
pub(crate) const TEST_TIMEOUT: Duration = Duration::from_secs(20);

/// Waits until a condition holds; the one way to wait.
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

/// The same for a condition that has to be asked in a runtime.
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

/// Takes as long as something takes that a test is about: the work of an app, the pace of a client. Never to wait for something to happen.
pub(crate) fn simulate_delay(duration: Duration) {
    std::thread::sleep(duration);
}

/// A directory of its own, gone with the value.
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

    /// Writes a file, or another one in its place; nobody ever reads half of it.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let temporary_path = self.0.join(format!(".{name}.new"));
        std::fs::write(&temporary_path, text).unwrap();
        std::fs::rename(temporary_path, self.0.join(name)).unwrap();
    }
}

impl Drop for TempDirectory {
    fn drop(&mut self) {
        // What cannot be removed is the system's to clean up.
        _ = std::fs::remove_dir_all(&self.0);
    }
}
