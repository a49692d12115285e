//! Process signals: `SIGHUP` reloads, `SIGTERM` and `SIGINT` drain, and a second one of these
//! two terminates at once.
//!
//! The signals are registered before any listener is bound. Until then the default action of
//! the system applies, and `SIGHUP` would end the process. This module does not know what a
//! drain or a reload does.

use std::io;

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// Action that a received signal requests.
#[derive(Debug, Clone, Copy)]
pub(super) enum ProcessSignal {
    /// Reload the policies from disk.
    Reload,
    /// Drain and terminate. Holds the name of the signal for the log.
    Terminate(&'static str),
}

/// Registered signals. The default value registers none, for programs that embed the proxy.
#[derive(Debug, Default)]
pub struct ProcessSignals {
    hangup: Option<Stream>,
    terminate: Option<Stream>,
    interrupt: Option<Stream>,
}

impl ProcessSignals {
    /// Registers all signals. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// If the system does not allow the registration.
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
