//! Leaving: announced, then quiet, then gone.

use std::{sync::Arc, time::Duration};

use crate::{
    clock,
    resilience::lifecycle::{Drain, Stage},
    state::{
        State,
        command::Going,
        lifecycle::{End, condition},
        listening::ListenerSet,
    },
    telemetry::event::Event,
};

/// Connections that are told to end at last get so long to take note of it.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// A drain that may have begun, and what it acts on.
#[derive(Debug)]
pub(super) struct Leaving {
    state: Arc<State>,
    listeners: Arc<dyn ListenerSet>,
    drain: Option<Drain>,
}

impl Leaving {
    /// Nothing has begun.
    pub(super) fn new(state: Arc<State>, listeners: Arc<dyn ListenerSet>) -> Self {
        Self {
            state,
            listeners,
            drain: None,
        }
    }

    /// Begins to drain, or goes on with it; and goes after it, if that is wanted now.
    pub(super) fn begin(&mut self, asked_by: &'static str, going: Going) {
        let now = clock::now();
        let mut drain = self.drain.unwrap_or_else(|| {
            self.state.telemetry.emit(Event::DrainBegan { asked_by });
            Drain::begin(self.state.live.load().snapshot.lifecycle.drain, now)
        });
        if going == Going::AppIsGone {
            drain.skip_delay();
        }
        if going != Going::Stays {
            drain.go(now);
        }
        self.drain = Some(drain);
        // Before anything else happens, so that a probe after the answer to who asked says so.
        self.state.departure.follow(&drain);
        self.state.lifecycle.set(
            condition::NOT_DRAINING,
            false,
            "draining",
            drain.began(),
            &self.state.telemetry,
        );
    }

    /// Whether it has begun.
    pub(super) fn has_begun(&self) -> bool {
        self.drain.is_some()
    }

    /// Another process takes the connections from now on; this one finishes what it has, and goes.
    pub(super) fn relieve(&mut self, by: &'static str) {
        self.state.telemetry.emit(Event::Relieved { by });
        self.listeners.stop_accepting();
        let drain = Drain::relieved(
            self.state.live.load().snapshot.lifecycle.drain,
            clock::now(),
        );
        self.drain = Some(drain);
        self.state.departure.follow(&drain);
    }

    /// Returns when the instance may end; can be dropped and begun again at any time. Callers are served, and then refused, until then, and
    /// the app may go on asking others.
    pub(super) async fn gone(&mut self) -> End {
        let Some(drain) = &mut self.drain else {
            return std::future::pending().await;
        };
        let departure = &self.state.departure;
        loop {
            let ended = departure.something_ends();
            let (load, now, before) = (departure.load(), clock::now(), drain.stage());
            let stage = drain.advance(&load, now);
            departure.follow(drain);
            if before < Stage::Drained && stage >= Stage::Drained {
                let took = now.saturating_duration_since(drain.began());
                self.state.telemetry.emit(Event::DrainEnded {
                    is_clean: drain.is_clean(),
                    in_flight: load.inbound.in_flight,
                    took,
                });
            }
            if stage == Stage::Gone {
                break;
            }
            // Either is a reason to look again.
            _ = clock::until(drain.next_deadline(&load), ended).await;
        }
        self.listeners.close();
        // What began in the very last moment is finished, within the time there is; and who is connected is told of the end.
        let last_words = clock::now() + LAST_WORDS;
        loop {
            let ended = departure.something_ends();
            let is_busy = drain.is_clean() && departure.in_flight() > 0;
            let is_connected = self
                .state
                .lifecycle
                .connections()
                .iter()
                .any(|(_, count)| *count > 0);
            let until = if is_busy {
                drain.latest().max(last_words)
            } else {
                last_words
            };
            if !(is_busy || is_connected) || clock::now() >= until {
                break;
            }
            // Either is a reason to look again.
            _ = clock::until(Some(until), ended).await;
        }
        End::Drained {
            is_clean: drain.is_clean(),
        }
    }
}
