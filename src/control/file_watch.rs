//! Notices that a policy directory may have changed.
//!
//! The directory is watched, not its files: Kubernetes updates a ConfigMap by swapping a link beside them, and a watch on a file
//! would see at most its end. Whether anything has really changed is found out by content; so any event will do, several are
//! taken together, and a slow poll covers file systems that send none.

use std::{path::PathBuf, time::Duration};

use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;

use crate::clock;

/// Events that come so close together are taken as one: an update is many small steps.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// Tells `changed` whenever the directory may have changed.
pub(super) async fn watch_path(path: PathBuf, poll_interval: Duration, changed: mpsc::Sender<()>) {
    let (notice, mut notices) = mpsc::channel(1);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // A reading is a change of nothing; and one notice that waits is as good as many.
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
    // What changed between the first reading and the beginning of the watch has sent no notice.
    if changed.send(()).await.is_err() {
        return;
    }
    loop {
        tokio::select! {
            Some(()) = notices.recv(), if is_watching => clock::sleep(DEBOUNCE).await,
            () = clock::sleep(poll_interval) => {}
        }
        // What came meanwhile is covered by the reading that follows.
        _ = notices.try_recv();
        if changed.send(()).await.is_err() {
            return;
        }
    }
}
