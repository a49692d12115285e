//! What others may ask of the background tasks.
//!
//! The admin server and the control tasks do not know each other; they meet here.

use tokio::sync::oneshot;

/// A wish, and where the answer goes.
#[derive(Debug)]
pub enum Command {
    /// Read the policies again; the answer is the generation in force, or all faults.
    Reload(oneshot::Sender<Result<Reloaded, Vec<String>>>),
    /// Leave.
    Drain {
        /// Who asks.
        asked_by: &'static str,
    },
}

/// What a reload did.
#[derive(Debug, Clone)]
pub struct Reloaded {
    /// The generation in force.
    pub generation: u64,
    /// What has changed, in words; empty if nothing has.
    pub changes: Vec<String>,
}
