//! Shared state of a circuit breaker.
//!
//! This module puts a lock around the pure [`Breaker`], applies the mode and emits state
//! transitions as events. A guard settles each admitted call exactly once, even if the call is
//! cancelled. The module does not decide which response counts as a failure.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};

use crate::{
    policy::sections::circuit_breaker::BreakerSpec,
    resilience::{
        Mode,
        breaker::{
            Breaker, BreakerConfig, BreakerSnapshot, CallOutcome, CallResult, Permit, Rejected,
            Speed, StateKind, Transition,
        },
    },
    state::table::{BuildContext, Reconfigure},
    telemetry::{Telemetry, event::Event},
};

/// Circuit breaker that is shared by all requests under one name.
#[derive(Debug)]
pub struct BreakerState {
    name: Arc<str>,
    telemetry: Arc<Telemetry>,
    /// State machine and mode; the lock covers one call.
    inner: Mutex<BreakerInner>,
}

#[derive(Debug)]
struct BreakerInner {
    machine: Breaker,
    mode: Mode,
}

/// Decision of a circuit breaker on one call.
#[derive(Debug)]
pub enum BreakerDecision {
    /// The call may be made. Its result must be passed to the guard.
    Admitted(BreakerGuard),
    /// The call must not be made.
    Rejected(Rejected),
    /// The call may be made only because of shadow mode. Its result is not counted.
    WouldReject,
}

impl BreakerState {
    /// Creates a closed breaker, and publishes its state as a metric.
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

    /// Returns the name that identifies this state across reloads.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Requests a permit for one call. `random` is uniform in `0..1`.
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

    /// Returns for how long calls are rejected, or `None` if a call may be admitted.
    ///
    /// It takes no permit, so that the selection of an endpoint can skip a breaker that is
    /// open. In shadow mode it returns `None`. A breaker that is forced open returns one
    /// second.
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

    /// Ends a half-open round that exceeds its maximum duration.
    pub fn end_expired_half_open(&self, now: Instant, random: f64) {
        self.apply(|machine| machine.end_expired_half_open(now, random));
    }

    /// Applies a state change that an operator requests, such as a reset.
    pub fn change_state(
        &self,
        change: fn(&mut Breaker, Instant) -> Option<Transition>,
        now: Instant,
    ) {
        self.apply(|machine| change(machine, now));
    }

    /// Returns the state and the counts for the admin API, and the mode.
    #[must_use]
    pub fn snapshot(&self, now: Instant) -> (BreakerSnapshot, Mode) {
        let mut inner = self.lock();
        (inner.machine.snapshot(now), inner.mode)
    }

    /// Passes an input to the state machine, and emits the transition that it causes.
    fn apply(&self, input: impl FnOnce(&mut Breaker) -> Option<Transition>) {
        let transition = input(&mut self.lock().machine);
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
        self.inner.lock()
    }
}

/// Permit for one call. If it is dropped without a result, the permit is returned and the call
/// is not counted.
#[derive(Debug)]
#[must_use = "a guard that is dropped at once counts nothing"]
pub struct BreakerGuard {
    breaker: Arc<BreakerState>,
    permit: Option<Permit>,
    started_at: Instant,
}

impl BreakerGuard {
    /// Records the result of the call. `random` is uniform in `0..1`.
    pub fn settle(mut self, outcome: CallOutcome, speed: Speed, now: Instant, random: f64) {
        if let Some(permit) = self.permit.take() {
            let result = CallResult { outcome, speed };
            self.breaker
                .apply(|machine| machine.settle(&permit, result, now, random));
        }
    }
}

impl Drop for BreakerGuard {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            // A cancelled call is not counted, so its speed and its time have no effect.
            let (now, random) = (self.started_at, 0.5);
            let result = CallResult {
                outcome: CallOutcome::Cancelled,
                speed: Speed::Fast,
            };
            self.breaker
                .apply(|machine| machine.settle(&permit, result, now, random));
        }
    }
}

impl Reconfigure for BreakerState {
    type Spec = BreakerSpec;

    fn create(name: &Arc<str>, spec: &Self::Spec, context: BuildContext<'_>) -> Self {
        Self::new(
            name.clone(),
            spec.config,
            spec.mode,
            context.telemetry.clone(),
            context.now,
        )
    }

    /// Applies a new specification and mode; the state and the counts are retained.
    fn reconfigure(&self, spec: &Self::Spec, context: BuildContext<'_>) -> Option<Self> {
        let mut inner = self.lock();
        inner.mode = spec.mode;
        if *inner.machine.config() != spec.config {
            inner.machine.reconfigure(spec.config, context.now);
        }
        None
    }
}
