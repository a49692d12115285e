//! Leaving: announced, then quiet, then gone.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::{
    clock,
    policy::document::Direction,
    resilience::lifecycle::{Drain, DrainPhase},
    state::{State, command::Command, lifecycle::End, listening::ListenerSet},
    telemetry::event::Event,
};

/// Drains, and returns when the instance may end. Until then the app may go on asking others: only the inbound side closes.
pub(super) async fn drain(state: &Arc<State>, listeners: &dyn ListenerSet, wishes: &mut mpsc::Receiver<Command>, asked_by: &'static str) -> End {
    let began = clock::now();
    let drain = Drain::begin(state.live.load().snapshot.lifecycle.drain, began);
    state.lifecycle.begin_drain(drain, &state.telemetry);
    state.telemetry.emit(Event::DrainBegan { asked_by });
    let mut has_closed = false;
    loop {
        let ended = state.lifecycle.something_ends();
        let now = clock::now();
        let (in_flight, last) = (state.lifecycle.in_flight(), state.lifecycle.last_activity());
        match drain.phase(in_flight, last, now) {
            DrainPhase::Announcing => {}
            DrainPhase::Waiting => {
                if !std::mem::replace(&mut has_closed, true) {
                    listeners.close(Some(Direction::Inbound));
                }
            }
            DrainPhase::Done { is_clean } => {
                listeners.close(None);
                let took = now.saturating_duration_since(began);
                state.telemetry.emit(Event::DrainEnded { is_clean, in_flight, took });
                return End::Drained { is_clean };
            }
        }
        let deadline = drain.next_deadline(in_flight, last, now);
        tokio::select! {
            // Either is a reason to look again.
            _ = clock::until(Some(deadline), ended) => {}
            // To drain is wished already, and to reload is too late; whoever waits for an answer is told by its end.
            wish = wishes.recv() => drop(wish),
        }
    }
}
