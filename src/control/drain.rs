//! Leaving: announced, then quiet, then gone.

use std::{sync::Arc, time::Duration};

use crate::{
    clock,
    resilience::lifecycle::{DrainSequence, Stage},
    state::{
        State,
        instance::{
            command::AfterDrain,
            lifecycle::{ExitReason, condition},
            listener_sockets::ListenerSet,
        },
    },
    telemetry::event::Event,
};

/// Connections that are told to end at last get so long to take note of it.
const GOAWAY_GRACE: Duration = Duration::from_millis(100);

/// A drain that may have begun, and what it acts on.
#[derive(Debug)]
pub(super) struct DrainController {
    state: Arc<State>,
    listeners: Arc<dyn ListenerSet>,
    drain: Option<DrainSequence>,
}

impl DrainController {
    /// Nothing has begun.
    pub(super) fn new(state: Arc<State>, listeners: Arc<dyn ListenerSet>) -> Self {
        Self {
            state,
            listeners,
            drain: None,
        }
    }

    /// Begins to drain, or goes on with it; and goes after it, if that is wanted now.
    pub(super) fn begin(&mut self, asked_by: &'static str, after_drain: AfterDrain) {
        let now = clock::now();
        let mut drain = self.drain.unwrap_or_else(|| {
            self.state.telemetry.emit(Event::DrainStarted {
                requested_by: asked_by,
            });
            DrainSequence::begin(
                self.state.active_policy.load().snapshot.lifecycle.drain,
                now,
            )
        });
        if after_drain == AfterDrain::TerminateWithoutDelay {
            drain.skip_delay();
        }
        if after_drain != AfterDrain::KeepServing {
            drain.request_termination(now);
        }
        self.drain = Some(drain);
        // Before anything else happens, so that a probe after the answer to who asked says so.
        self.state.drain.publish(&drain);
        self.state.lifecycle.set_condition(
            condition::NOT_DRAINING,
            false,
            "draining",
            drain.started_at(),
            &self.state.telemetry,
        );
    }

    /// Whether it has begun.
    pub(super) fn has_begun(&self) -> bool {
        self.drain.is_some()
    }

    /// Another process takes the connections from now on; this one finishes what it has, and goes.
    pub(super) fn hand_over(&mut self, by: &'static str) {
        self.state
            .telemetry
            .emit(Event::HandedOver { requested_by: by });
        self.listeners.stop_accepting();
        let drain = DrainSequence::begin_handed_over(
            self.state.active_policy.load().snapshot.lifecycle.drain,
            clock::now(),
        );
        self.drain = Some(drain);
        self.state.drain.publish(&drain);
    }

    /// Returns when the instance may end; can be dropped and begun again at any time. Callers are served, and then refused, until then, and
    /// the app may go on asking others.
    pub(super) async fn run_to_completion(&mut self) -> ExitReason {
        let Some(drain) = &mut self.drain else {
            return std::future::pending().await;
        };
        let drain_state = &self.state.drain;
        loop {
            let request_ended = drain_state.next_request_or_connection_end();
            let (load, now, before) = (drain_state.instance_load(), clock::now(), drain.stage());
            let stage = drain.advance(&load, now);
            drain_state.publish(drain);
            if before < Stage::Drained && stage >= Stage::Drained {
                let took = now.saturating_duration_since(drain.started_at());
                self.state.telemetry.emit(Event::DrainEnded {
                    is_clean: drain.is_clean(),
                    in_flight: load.inbound.in_flight,
                    duration: took,
                });
            }
            if stage == Stage::Terminated {
                break;
            }
            // Either is a reason to look again.
            _ = clock::timeout_at(drain.next_deadline(&load), request_ended).await;
        }
        self.listeners.close();
        // What began in the very last moment is finished, within the time there is; and who is connected is told of the end.
        let goaway_deadline = clock::now() + GOAWAY_GRACE;
        loop {
            let request_ended = drain_state.next_request_or_connection_end();
            let is_busy = drain.is_clean() && drain_state.in_flight() > 0;
            let is_connected = self
                .state
                .lifecycle
                .connections()
                .iter()
                .any(|(_, count)| *count > 0);
            let until = if is_busy {
                drain.deadline().max(goaway_deadline)
            } else {
                goaway_deadline
            };
            if !(is_busy || is_connected) || clock::now() >= until {
                break;
            }
            // Either is a reason to look again.
            _ = clock::timeout_at(Some(until), request_ended).await;
        }
        ExitReason::Drained {
            is_clean: drain.is_clean(),
        }
    }
}
