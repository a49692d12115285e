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
    Reload(oneshot::Sender<Result<Reloaded, Vec<String>>>),
    /// Send the callers away, and if it is so, leave.
    Drain {
        /// Who asks.
        asked_by: &'static str,
        /// What then.
        going: Going,
        /// Is told when it has begun.
        begun: oneshot::Sender<()>,
    },
    /// Ask the app one of its own probes.
    AskApp {
        /// Its backend.
        backend: Arc<str>,
        /// The path; without one it is only connected to.
        path: Option<Arc<str>>,
        /// Where the answer goes: what it says, or why it says nothing.
        reply: oneshot::Sender<Result<AppAnswer, String>>,
    },
}

/// What becomes of an instance that has drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Going {
    /// It goes on serving the app, until it is asked to go.
    Stays,
    /// It goes once the app is quiet.
    Goes,
    /// The same, and no news has to travel, because there is nobody left to be called.
    AppIsGone,
}

/// What the app says.
#[derive(Debug, Clone)]
pub struct AppAnswer {
    /// The status.
    pub status: u16,
    /// The beginning of the body.
    pub body: Bytes,
}

/// What a reload did.
#[derive(Debug, Clone)]
pub struct Reloaded {
    /// The generation in force.
    pub generation: u64,
    /// What has changed, in words; empty if nothing has.
    pub changes: Vec<String>,
}
