//! Commands to the control loop.
//!
//! The admin server sends commands, and the control loop executes them. Neither knows the
//! other: they share only these types and the channel in [`crate::state::State`]. This module
//! decides nothing itself.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

/// Command to the control loop, with a channel for its result.
#[derive(Debug)]
pub enum Command {
    /// Reloads the policies and sends a report, or all faults of the rejected policies. While
    /// the instance drains, the channel is dropped without a result.
    Reload(oneshot::Sender<Result<ReloadReport, Vec<String>>>),
    /// Starts a drain, and optionally terminates the instance after it.
    Drain {
        /// Name of the requester for the log.
        requested_by: &'static str,
        /// What the instance does after the drain.
        after_drain: AfterDrain,
        /// Notified once the drain has started and is visible to probes.
        started: oneshot::Sender<()>,
    },
    /// Sends one of the app's own probes to the app.
    ProbeApp {
        /// Name of the backend that represents the app.
        backend: Arc<str>,
        /// Path of the probe; `None` only checks that the app accepts a connection.
        path: Option<Arc<str>>,
        /// Receives the response, or the reason why there is none.
        reply: oneshot::Sender<Result<AppProbeResponse, String>>,
    },
}

/// What an instance does after its drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterDrain {
    /// The instance continues to proxy requests of the app until its termination is requested.
    KeepServing,
    /// The instance terminates once the app sends no more requests.
    Terminate,
    /// The instance skips the drain delay and then terminates. This applies when the app has
    /// ended, because clients need not learn that the instance is unready.
    TerminateWithoutDelay,
}

/// Start of the text with which the admin server reports that the app did not respond to a
/// probe. `outrigger drain` detects the end of the app by it.
pub const NO_APP_RESPONSE: &str = "the app does not respond";

/// Response of the app to one of its own probes.
#[derive(Debug, Clone)]
pub struct AppProbeResponse {
    /// HTTP status; 200 if the probe only checked the connection.
    pub status: u16,
    /// Beginning of the response body, at most 4 KiB.
    pub body: Bytes,
}

/// Result of a reload that succeeded.
#[derive(Debug, Clone)]
pub struct ReloadReport {
    /// Generation in force after the reload. It stays the same if the policies have not
    /// changed.
    pub generation: u64,
    /// Descriptions of the changes for a user; empty if nothing has changed.
    pub changes: Vec<String>,
}
