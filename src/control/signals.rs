//! The signals of the process: SIGHUP reloads, SIGTERM and SIGINT drain, and a second one of those ends at once.
//!
//! They are heeded before anything answers: until then the system's own reaction to SIGHUP is to end the process.

use std::io;

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// What a signal means.
#[derive(Debug, Clone, Copy)]
pub(super) enum Signal {
    /// Read the policies again.
    Reload,
    /// Leave; by the signal of this name.
    End(&'static str),
}

/// The signals that are heeded.
#[derive(Debug, Default)]
pub struct Signals {
    hangup: Option<Stream>,
    terminate: Option<Stream>,
    interrupt: Option<Stream>,
}

impl Signals {
    /// Heeds the signals of the process from now on; needs a runtime around it. By default none are heeded.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn heed() -> io::Result<Self> {
        let listen = |kind| signal(kind).map(Some);
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    pub(super) async fn next(&mut self) -> Signal {
        tokio::select! {
            () = arrives(&mut self.hangup) => Signal::Reload,
            () = arrives(&mut self.terminate) => Signal::End("SIGTERM"),
            () = arrives(&mut self.interrupt) => Signal::End("SIGINT"),
        }
    }
}

async fn arrives(stream: &mut Option<Stream>) {
    match stream {
        Some(stream) => drop(stream.recv().await),
        None => std::future::pending().await,
    }
}
