//! What the tests stand on: a scripted backend, a client that says exactly what it is told, the sidecar on port 0, and the one
//! way to wait; nothing else may.

pub(crate) mod backend;
pub(crate) mod certificates;
pub(crate) mod client;
pub(crate) mod fleet;
pub(crate) mod http2;
pub(crate) mod name_server;
pub(crate) mod process;
pub(crate) mod redis;
pub(crate) mod sidecar;

use std::{
    future::Future,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

pub(crate) use backend::Backend;
pub(crate) use client::{Answer, Client};
pub(crate) use sidecar::Sidecar;

/// How long anything that should happen may take on a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until a condition holds; the one way to wait.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The same for a condition that has to be asked in a runtime.
pub(crate) async fn eventually_async<F: Future<Output = bool>>(
    what: &str,
    mut condition: impl FnMut() -> F,
) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Takes as long as something takes that a test is about: the work of an app, the pace of a client. Never to wait for something to happen.
pub(crate) fn take(long: Duration) {
    std::thread::sleep(long);
}

/// A directory of its own, gone with the value.
pub(crate) struct Directory(PathBuf);

impl Directory {
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
        let beside = self.0.join(format!(".{name}.new"));
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(beside, self.0.join(name)).unwrap();
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What cannot be removed is the system's to clean up.
        _ = std::fs::remove_dir_all(&self.0);
    }
}
