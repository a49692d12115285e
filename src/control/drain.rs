//! Executes a drain: publishes its stages, waits for requests to end, and closes listeners and
//! connections.
//!
//! The pure [`DrainSequence`] decides the stages and their times. This module supplies it with
//! the load and the time, and acts on its result. It knows only a name of the requester, for
//! the log. It does not end the process itself.

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

/// Time between the final notice to clients (`GOAWAY`, or the close of an HTTP/1 connection)
/// and the end of the process. Clients use it to receive the notice.
const GOAWAY_GRACE: Duration = Duration::from_millis(100);

/// The drain of this instance, once it has started, and the parts that it acts on.
#[derive(Debug)]
pub(super) struct DrainController {
    state: Arc<State>,
    listeners: Arc<dyn ListenerSet>,
    drain: Option<DrainSequence>,
}

impl DrainController {
    /// Creates a controller without a drain.
    pub(super) fn new(state: Arc<State>, listeners: Arc<dyn ListenerSet>) -> Self {
        Self {
            state,
            listeners,
            drain: None,
        }
    }

    /// Starts a drain, or continues the one that is in progress.
    ///
    /// `after_drain` can request termination after the drain, also for a drain in progress. A
    /// repeated call never weakens an earlier one.
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
        // The stage is published before the requester is notified, so that a probe after the
        // response already reports the drain.
        self.state.drain.publish(&drain);
        self.state.lifecycle.set_condition(
            condition::NOT_DRAINING,
            false,
            "draining",
            drain.started_at(),
        );
    }

    /// Returns `true` once a drain or a handover has started.
    pub(super) fn has_begun(&self) -> bool {
        self.drain.is_some()
    }

    /// Stops accepting connections because another process accepts them from now on. This
    /// instance finishes its requests and then terminates.
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

    /// Runs the drain and returns when the process may end. Never returns before a drain has
    /// started.
    ///
    /// Cancel safe: the caller can drop the future and call again. From stage `Drained` on,
    /// inbound requests are rejected, except after a handover. Outbound requests of the app are
    /// proxied until the end.
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
            // A deadline and the end of a request both require a new evaluation.
            _ = clock::timeout_at(drain.next_deadline(&load), request_ended).await;
        }
        self.listeners.close();
        // Requests that started just before the close may finish within the remaining drain
        // time. Clients with open connections get `GOAWAY_GRACE` to receive the notice.
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
            // A deadline and the end of a request both require a new evaluation.
            _ = clock::timeout_at(Some(until), request_ended).await;
        }
        ExitReason::Drained {
            is_clean: drain.is_clean(),
        }
    }
}
