//! Reports that a policy directory or an endpoints file may have changed.
//!
//! The module watches the directory and not the file. Kubernetes updates a ConfigMap by
//! swapping a symbolic link in the directory, and a watch on a file would at most see that file
//! removed.
//!
//! The module does not know whether the content has changed, because the receiver compares
//! content. Any event may therefore trigger a report. Events in quick succession are merged. A
//! poll covers file systems without events.

use std::{path::PathBuf, time::Duration};

use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;

use crate::clock;

/// Time during which further events are merged into one report. One update of a directory
/// causes many events.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// Sends on `changed` once at the start, then after each event in the directory, and at least
/// every `poll_interval`.
///
/// For a `path` that is a file, the parent directory is watched. The function returns when the
/// receiver is closed.
pub(super) async fn watch_path(path: PathBuf, poll_interval: Duration, changed: mpsc::Sender<()>) {
    let (notice, mut notices) = mpsc::channel(1);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Read accesses change nothing. If the channel is full, a notice is already pending and
        // one is enough.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            _ = notice.try_send(());
        }
    });
    let directory = if path.is_dir() {
        path.as_path()
    } else {
        path.parent().unwrap_or(&path)
    };
    let watcher = watcher.and_then(|mut watcher| {
        watcher
            .watch(directory, RecursiveMode::NonRecursive)
            .map(|()| watcher)
    });
    let is_watching = match &watcher {
        Ok(_) => true,
        Err(error) => {
            tracing::warn!(
                "{} cannot be watched, it is looked at every {poll_interval:?} instead: {error}",
                directory.display()
            );
            false
        }
    };
    // A change between the first read and the start of the watch has produced no event.
    if changed.send(()).await.is_err() {
        return;
    }
    loop {
        tokio::select! {
            Some(()) = notices.recv(), if is_watching => clock::sleep(DEBOUNCE).await,
            () = clock::sleep(poll_interval) => {}
        }
        // The read that follows covers events that arrived during the wait.
        _ = notices.try_recv();
        if changed.send(()).await.is_err() {
            return;
        }
    }
}
