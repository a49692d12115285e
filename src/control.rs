//! The background: everything that happens without a request, and all timers.
//!
//! All tasks are started here, each has a name, and all end with the control thread's runtime.

mod drain;
mod http_call;
pub mod listeners;
mod probing;
mod recovery;
mod reload;
mod signals;
mod upkeep;
mod watch;

use std::{sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch as channel};

pub use self::reload::{Reloader, StartFault};
use crate::state::{State, command::Command};

/// Why the instance ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It drained, and whether nothing was left in flight.
    Drained {
        /// Whether nothing was left.
        is_clean: bool,
    },
    /// It was asked twice, and left at once.
    AtOnce,
}

/// What the background is to look after.
#[derive(Debug)]
pub struct Control {
    /// What all parts share.
    pub state: Arc<State>,
    /// Reads policies and puts them in force.
    pub reloader: Reloader,
    /// How often the policy directory is looked at, besides the system's notices.
    pub poll_interval: Duration,
    /// Whether to heed the signals of the process.
    pub heeds_signals: bool,
}

impl Control {
    /// Runs until the instance has drained.
    pub async fn run(self, mut wishes: mpsc::Receiver<Command>) -> End {
        let Self { state, mut reloader, poll_interval, heeds_signals } = self;
        let (changed, mut changes) = mpsc::channel(1);
        tokio::spawn(watch::watch(reloader.path().to_owned(), poll_interval, changed));
        let (applied, generations) = channel::channel(state.live.load().generation);
        tokio::spawn(probing::probe(state.clone(), generations));
        tokio::spawn(upkeep::upkeep(state.clone()));
        tokio::spawn(recovery::recover(state.clone()));
        let mut signals = signals::Signals::new(heeds_signals);
        let asked_by = loop {
            tokio::select! {
                Some(command) = wishes.recv() => match command {
                    Command::Reload(reply) => {
                        // Whoever asked may have left.
                        _ = reply.send(reloader.reload());
                        applied.send_replace(state.live.load().generation);
                    }
                    Command::Drain { asked_by } => break asked_by,
                },
                Some(()) = changes.recv() => {
                    reloader.reload_if_changed();
                    applied.send_replace(state.live.load().generation);
                }
                signal = signals.next() => match signal {
                    signals::Signal::Reload => {
                        // The faults, if any, have been told as an event.
                        _ = reloader.reload();
                        applied.send_replace(state.live.load().generation);
                    }
                    signals::Signal::End(name) => break name,
                },
            }
        };
        tokio::select! {
            end = drain::drain(&state, reloader.listeners(), asked_by) => end,
            () = signals.until_end() => End::AtOnce,
        }
    }
}
