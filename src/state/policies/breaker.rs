//! A breaker that is shared: the machine behind a lock, its name, and the guard that settles each call exactly once.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    resilience::{
        Mode,
        breaker::{
            Breaker, BreakerConfig, BreakerSnapshot, CallOutcome, Permit, Rejected, Speed,
            StateKind, Transition,
        },
    },
    telemetry::{Telemetry, event::Event},
};

/// A breaker by its name.
#[derive(Debug)]
pub struct BreakerState {
    name: Arc<str>,
    telemetry: Arc<Telemetry>,
    /// Guards one call of the machine.
    inner: Mutex<BreakerInner>,
}

#[derive(Debug)]
struct BreakerInner {
    machine: Breaker,
    mode: Mode,
}

/// What the breaker said to a call.
#[derive(Debug)]
pub enum BreakerDecision {
    /// It may be made; its result belongs to the guard.
    Admitted(BreakerGuard),
    /// It may not.
    Rejected(Rejected),
    /// It would have been refused, and shadow mode lets it pass uncounted.
    WouldReject,
}

impl BreakerState {
    /// Makes a closed breaker.
    #[must_use]
    pub fn new(
        name: Arc<str>,
        config: BreakerConfig,
        mode: Mode,
        telemetry: Arc<Telemetry>,
        now: Instant,
    ) -> Self {
        telemetry
            .metrics
            .set_breaker_state(&name, StateKind::Closed);
        Self {
            name,
            telemetry,
            inner: Mutex::new(BreakerInner {
                machine: Breaker::new(config, now),
                mode,
            }),
        }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Asks for one call. `random` is uniform in `0..1`.
    pub fn try_acquire(self: &Arc<Self>, now: Instant, random: f64) -> BreakerDecision {
        let mut inner = self.lock();
        let mode = inner.mode;
        let (result, transition) = inner.machine.try_acquire(now, random);
        drop(inner);
        self.emit_transition(transition);
        match result {
            Ok(permit) => BreakerDecision::Admitted(BreakerGuard {
                breaker: self.clone(),
                permit: Some(permit),
                started_at: now,
            }),
            Err(_) if mode == Mode::Shadow => BreakerDecision::WouldReject,
            Err(rejected) => BreakerDecision::Rejected(rejected),
        }
    }

    /// How long calls will be refused from now on, if they are, without asking for one: for the picking of endpoints.
    #[must_use]
    pub fn retry_after(&self, now: Instant) -> Option<Duration> {
        let inner = self.lock();
        match inner.machine.state_kind() {
            _ if inner.mode == Mode::Shadow => None,
            StateKind::Open => inner
                .machine
                .next_deadline()
                .filter(|open_until| now <= *open_until)
                .map(|open_until| open_until.saturating_duration_since(now)),
            StateKind::ForcedOpen => Some(Duration::from_secs(1)),
            StateKind::Closed | StateKind::HalfOpen | StateKind::Disabled => None,
        }
    }

    /// Ends a half-open round that took too long.
    pub fn end_expired_half_open(&self, now: Instant, random: f64) {
        let transition = self.lock().machine.end_expired_half_open(now, random);
        self.emit_transition(transition);
    }

    /// Follows a new configuration, with state and counts kept.
    pub fn reconfigure(&self, config: BreakerConfig, mode: Mode, now: Instant) {
        let mut inner = self.lock();
        inner.mode = mode;
        if *inner.machine.config() != config {
            inner.machine.reconfigure(config, now);
        }
    }

    /// Changes the state by hand.
    pub fn change_state(
        &self,
        change: fn(&mut Breaker, Instant) -> Option<Transition>,
        now: Instant,
    ) {
        let transition = change(&mut self.lock().machine, now);
        self.emit_transition(transition);
    }

    /// What a view shows, and whether the breaker acts.
    #[must_use]
    pub fn snapshot(&self, now: Instant) -> (BreakerSnapshot, Mode) {
        let mut inner = self.lock();
        (inner.machine.snapshot(now), inner.mode)
    }

    fn settle(
        &self,
        permit: &Permit,
        outcome: CallOutcome,
        speed: Speed,
        now: Instant,
        random: f64,
    ) {
        let transition = self
            .lock()
            .machine
            .settle(permit, outcome, speed, now, random);
        self.emit_transition(transition);
    }

    fn emit_transition(&self, transition: Option<Transition>) {
        if let Some(transition) = transition {
            self.telemetry.emit(Event::BreakerChanged {
                breaker: self.name.clone(),
                transition,
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, BreakerInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to one call. Dropped without a verdict it gives its permit back, counted nowhere.
#[derive(Debug)]
#[must_use = "a guard that is dropped at once counts nothing"]
pub struct BreakerGuard {
    breaker: Arc<BreakerState>,
    permit: Option<Permit>,
    started_at: Instant,
}

impl BreakerGuard {
    /// Tells how the call went.
    pub fn settle(mut self, outcome: CallOutcome, speed: Speed, now: Instant, random: f64) {
        if let Some(permit) = self.permit.take() {
            self.breaker.settle(&permit, outcome, speed, now, random);
        }
    }
}

impl Drop for BreakerGuard {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            // A cancelled call is counted nowhere, so that its time does not matter.
            self.breaker.settle(
                &permit,
                CallOutcome::Cancelled,
                Speed::Fast,
                self.started_at,
                0.5,
            );
        }
    }
}
