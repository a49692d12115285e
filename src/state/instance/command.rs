//! What others may ask of the background tasks.
//!
//! The admin server and the control tasks do not know each other; they meet here.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

/// A wish, and where the answer goes.
#[derive(Debug)]
pub enum Command {
    /// Read the policies again; the answer is the generation in force, or all faults.
    Reload(oneshot::Sender<Result<ReloadReport, Vec<String>>>),
    /// Send the callers away, and if it is so, leave.
    Drain {
        /// Who asks.
        requested_by: &'static str,
        /// What then.
        after_drain: AfterDrain,
        /// Is told when it has begun.
        started: oneshot::Sender<()>,
    },
    /// Ask the app one of its own probes.
    ProbeApp {
        /// Its backend.
        backend: Arc<str>,
        /// The path; without one it is only connected to.
        path: Option<Arc<str>>,
        /// Where the answer goes: what it says, or why it says nothing.
        reply: oneshot::Sender<Result<AppProbeResponse, String>>,
    },
}

/// What becomes of an instance that has drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterDrain {
    /// It goes on serving the app, until it is asked to go.
    KeepServing,
    /// It goes once the app is quiet.
    Terminate,
    /// The same, and no news has to travel, because there is nobody left to be called.
    TerminateWithoutDelay,
}

/// What the app says.
#[derive(Debug, Clone)]
pub struct AppProbeResponse {
    /// The status.
    pub status: u16,
    /// The beginning of the body.
    pub body: Bytes,
}

/// What a reload did.
#[derive(Debug, Clone)]
pub struct ReloadReport {
    /// The generation in force.
    pub generation: u64,
    /// What has changed, in words; empty if nothing has.
    pub changes: Vec<String>,
}
