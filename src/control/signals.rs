//! The signals of the process: SIGHUP reloads, SIGTERM and SIGINT drain, and a second one of those ends at once.
//!
//! They are heeded before anything answers: until then the system's own reaction to SIGHUP is to end the process.

use std::io;

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// What a signal means.
#[derive(Debug, Clone, Copy)]
pub(super) enum ProcessSignal {
    /// Read the policies again.
    Reload,
    /// Leave; by the signal of this name.
    Terminate(&'static str),
}

/// The signals that are heeded.
#[derive(Debug, Default)]
pub struct ProcessSignals {
    hangup: Option<Stream>,
    terminate: Option<Stream>,
    interrupt: Option<Stream>,
}

impl ProcessSignals {
    /// Heeds the signals of the process from now on; needs a runtime around it. By default none are heeded.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn register() -> io::Result<Self> {
        let listen = |kind| signal(kind).map(Some);
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    pub(super) async fn next(&mut self) -> ProcessSignal {
        tokio::select! {
            () = wait_for_signal(&mut self.hangup) => ProcessSignal::Reload,
            () = wait_for_signal(&mut self.terminate) => ProcessSignal::Terminate("SIGTERM"),
            () = wait_for_signal(&mut self.interrupt) => ProcessSignal::Terminate("SIGINT"),
        }
    }
}

async fn wait_for_signal(stream: &mut Option<Stream>) {
    match stream {
        Some(stream) => drop(stream.recv().await),
        None => std::future::pending().await,
    }
}
