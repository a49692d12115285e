//! The circuit breaker: when calls to a failing backend are rejected, and when they resume.
//!
//! A *closed* breaker admits calls and counts their results. If too many fail or too many are
//! slow, it *trips* and becomes *open*. An open breaker rejects calls, so that clients receive
//! a fast response and the backend can recover. After the open time the breaker is *half-open*:
//! a few calls probe the backend, and their results close or reopen it. A breaker that has just
//! closed first admits a rising share of calls, because a recovered backend has cold caches and
//! full queues.
//!
//! | state | admits | counts | ends by |
//! | --- | --- | --- | --- |
//! | closed | all calls; a rising share during the recovery ramp | yes | a reached threshold |
//! | open | none | no | the first call after the open time |
//! | half-open | at most `half_open_max_calls` | its probes | their results, or a timeout |
//! | forced open | none | no | an operator |
//! | disabled | all calls | no | an operator |
//!
//! Three thresholds trip the breaker, and each is optional:
//!
//! - Consecutive failures are checked first and need no minimum of calls, so a backend that is
//!   down is detected at once.
//! - The failure rate needs `minimum_calls`, so two failures out of three calls at night do not
//!   trip.
//! - The slow-call rate needs `minimum_calls` as well.
//!
//! A throttled call (429, gRPC 8) counts towards the failure rate, but not towards consecutive
//! failures. The backend works and reports an overload (linkerd2-proxy, `unified.rs`).
//!
//! The open time doubles with each failed half-open round, from `open_duration` to
//! `max_open_duration`. A jitter of 20 % prevents many proxies from probing at the same time.
//!
//! The design avoids two known defects:
//!
//! - A late result comes from before a state change. The generation in its permit identifies
//!   it, so it cannot decide on the probes (Polly #216, Hystrix #1350). The breaker only counts
//!   it as late.
//! - A call without a result returns its permit, so half-open cannot get stuck (Sentinel #1638,
//!   resilience4j #935).
//!
//! Semantics and names follow Resilience4j (`CircuitBreakerStateMachine.java`). The ramp
//! follows Traefik. The module does not know which responses are failures. The caller
//! classifies them.

mod call;
mod config;
mod half_open;
mod recovery_ramp;
#[cfg(test)]
mod tests;
mod transition;

use std::time::{Duration, Instant};

pub use crate::resilience::breaker::{
    call::{CallCounts, CallOutcome, CallResult, Speed},
    config::{BreakerConfig, BreakerThresholds, BreakerTimes, InvalidBreaker},
    transition::{StateKind, Transition, TransitionCause},
};
use crate::resilience::{
    breaker::{
        half_open::{HalfOpenProbes, ProbeVerdict},
        recovery_ramp::{RampDecision, RecoveryRamp},
    },
    ratio::Ratio,
    window::SlidingWindow,
};

/// Maximum deviation of the open time from its value, as a share of that value.
const OPEN_JITTER: f64 = 0.2;

/// Permission for one call, which [`Breaker::settle`] takes back exactly once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a permit that is not settled holds its place for ever"]
pub struct Permit {
    generation: u64,
}

/// Rejection of a call by the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rejected {
    /// State in which the breaker rejects the call.
    pub state: StateKind,
    /// Time after which a retry may be admitted, or `None` if the breaker is forced open.
    ///
    /// In closed and half-open, this is at most one second.
    pub retry_after: Option<Duration>,
}

/// State and counts of a breaker at one point in time, for diagnostics.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BreakerSnapshot {
    /// State at the time of the snapshot.
    pub state: StateKind,
    /// Time at which the breaker entered this state.
    pub since: Instant,
    /// Counts of the window, or of the probes in half-open.
    pub counts: CallCounts,
    /// Number of consecutive failures up to now.
    pub consecutive_failures: u32,
    /// End of the open time, or of the half-open round.
    pub deadline: Option<Instant>,
    /// Time since which the breaker has not been closed, over all half-open rounds.
    pub tripped_since: Option<Instant>,
    /// Share of calls that the breaker admits; 0 in half-open, where probes are counted
    /// instead.
    pub admitted_ratio: Ratio,
    /// Number of calls rejected since the creation of the breaker.
    pub rejected_calls: u64,
    /// Number of results that arrived after a state change.
    pub late_results: u64,
}

#[derive(Debug)]
enum StateData {
    Closed {
        ramp: Option<RecoveryRamp>,
    },
    Open {
        until: Instant,
    },
    HalfOpen {
        probes: HalfOpenProbes,
        until: Instant,
    },
    ForcedOpen,
    Disabled,
}

/// A circuit breaker: its configuration, its state and its counts.
#[derive(Debug)]
pub struct Breaker {
    config: BreakerConfig,
    state: StateData,
    since: Instant,
    generation: u64,
    window: SlidingWindow<CallCounts>,
    consecutive_failures: u32,
    /// Number of half-open rounds that failed since the breaker was last closed.
    failed_rounds: u32,
    tripped_since: Option<Instant>,
    rejected_calls: u64,
    late_results: u64,
}

impl Breaker {
    /// Creates a closed breaker with empty counts.
    #[must_use]
    pub fn new(config: BreakerConfig, now: Instant) -> Self {
        Self {
            window: SlidingWindow::new(config.window(), now),
            config,
            state: StateData::Closed { ramp: None },
            since: now,
            generation: 0,
            consecutive_failures: 0,
            failed_rounds: 0,
            tripped_since: None,
            rejected_calls: 0,
            late_results: 0,
        }
    }

    /// Acquires a permit for one call.
    ///
    /// An open breaker becomes half-open here, at the first call strictly after its deadline.
    /// No probe is wasted while there are no calls.
    ///
    /// # Errors
    /// Returns [`Rejected`] if the call may not be made.
    pub fn try_acquire(
        &mut self,
        now: Instant,
        random: f64,
    ) -> (Result<Permit, Rejected>, Option<Transition>) {
        let transition = self
            .end_expired_half_open(now, random)
            .or_else(|| self.try_enter_half_open(now));
        let generation = self.generation;
        let retry_after = match &mut self.state {
            StateData::Disabled | StateData::Closed { ramp: None } => {
                return (Ok(Permit { generation }), transition);
            }
            StateData::Closed { ramp: Some(ramp) } => {
                match ramp.admit(self.config.recovery_ramp(), now) {
                    RampDecision::Finished => {
                        self.state = StateData::Closed { ramp: None };
                        return (Ok(Permit { generation }), transition);
                    }
                    RampDecision::Admitted => return (Ok(Permit { generation }), transition),
                    RampDecision::Rejected => Some(Duration::from_secs(1)),
                }
            }
            StateData::HalfOpen { probes, until } => {
                if probes.try_start() {
                    return (Ok(Permit { generation }), transition);
                }
                Some(
                    until
                        .saturating_duration_since(now)
                        .min(Duration::from_secs(1)),
                )
            }
            StateData::Open { until } => Some(until.saturating_duration_since(now)),
            StateData::ForcedOpen => None,
        };
        self.rejected_calls = self.rejected_calls.saturating_add(1);
        (
            Err(Rejected {
                state: self.state_kind(),
                retry_after,
            }),
            transition,
        )
    }

    /// Records the result of a call. `random` is uniform in `0..1` and draws the jitter of the
    /// open time.
    ///
    /// A permit from an earlier generation counts as late and has no other effect.
    pub fn settle(
        &mut self,
        permit: &Permit,
        call: CallResult,
        now: Instant,
        random: f64,
    ) -> Option<Transition> {
        if permit.generation != self.generation {
            if call.outcome != CallOutcome::Cancelled {
                self.late_results = self.late_results.saturating_add(1);
            }
            return None;
        }
        match &mut self.state {
            StateData::Closed { .. } => self.settle_closed(call, now, random),
            StateData::HalfOpen { probes, .. } => {
                let verdict = probes.settle(&self.config, call);
                let counts = probes.counts();
                match verdict {
                    ProbeVerdict::Undecided => None,
                    ProbeVerdict::Passed => {
                        Some(self.close(TransitionCause::ProbesPassed, counts, now))
                    }
                    ProbeVerdict::Failed => {
                        Some(self.reopen(TransitionCause::ProbesFailed, counts, now, random))
                    }
                }
            }
            StateData::Open { .. } | StateData::ForcedOpen | StateData::Disabled => None,
        }
    }

    /// Ends a half-open round that exceeds its maximum duration, and reopens the breaker.
    pub fn end_expired_half_open(&mut self, now: Instant, random: f64) -> Option<Transition> {
        match &self.state {
            StateData::HalfOpen { probes, until } if now > *until => {
                let counts = probes.counts();
                Some(self.reopen(TransitionCause::ProbesTimedOut, counts, now, random))
            }
            _ => None,
        }
    }

    /// Returns the end of the open time or of the half-open round.
    ///
    /// After the latter, [`Breaker::end_expired_half_open`] reopens the breaker.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        match &self.state {
            StateData::Open { until } | StateData::HalfOpen { until, .. } => Some(*until),
            StateData::Closed { .. } | StateData::ForcedOpen | StateData::Disabled => None,
        }
    }

    /// Rejects all calls until [`Breaker::reset`] or [`Breaker::clear_override`].
    pub fn force_open(&mut self, now: Instant) -> Option<Transition> {
        self.tripped_since.get_or_insert(now);
        self.override_state(StateData::ForcedOpen, now)
    }

    /// Admits all calls without counting them, until [`Breaker::reset`] or
    /// [`Breaker::clear_override`].
    pub fn disable(&mut self, now: Instant) -> Option<Transition> {
        self.tripped_since = None;
        self.override_state(StateData::Disabled, now)
    }

    /// Closes the breaker with empty counts, whatever its state.
    pub fn reset(&mut self, now: Instant) -> Option<Transition> {
        self.clear_history(now);
        self.override_state(StateData::Closed { ramp: None }, now)
    }

    /// Ends a forced-open or disabled state and closes the breaker; other states remain.
    pub fn clear_override(&mut self, now: Instant) -> Option<Transition> {
        match self.state {
            StateData::ForcedOpen | StateData::Disabled => self.reset(now),
            StateData::Closed { .. } | StateData::Open { .. } | StateData::HalfOpen { .. } => None,
        }
    }

    /// Applies a new configuration.
    ///
    /// State and counts remain. A new window length starts with empty counts, because counts
    /// over another length are not comparable.
    pub fn reconfigure(&mut self, config: BreakerConfig, now: Instant) {
        if config.window() != self.config.window() {
            self.window = SlidingWindow::new(config.window(), now);
        }
        self.config = config;
    }

    /// Returns the configuration that the breaker currently follows.
    #[must_use]
    pub fn config(&self) -> &BreakerConfig {
        &self.config
    }

    /// Returns the state and the counts for diagnostics.
    #[must_use]
    pub fn snapshot(&mut self, now: Instant) -> BreakerSnapshot {
        let counts = match &self.state {
            StateData::HalfOpen { probes, .. } => probes.counts(),
            _ => self.window.total(now),
        };
        let admitted = match &self.state {
            StateData::Closed { ramp: Some(ramp) } => {
                ramp.admitted_ratio(self.config.recovery_ramp(), now)
            }
            StateData::Closed { ramp: None } | StateData::Disabled => Ratio::ONE,
            StateData::Open { .. } | StateData::HalfOpen { .. } | StateData::ForcedOpen => {
                Ratio::ZERO
            }
        };
        BreakerSnapshot {
            state: self.state_kind(),
            since: self.since,
            counts,
            consecutive_failures: self.consecutive_failures,
            deadline: self.next_deadline(),
            tripped_since: self.tripped_since,
            admitted_ratio: admitted,
            rejected_calls: self.rejected_calls,
            late_results: self.late_results,
        }
    }

    /// Returns the current state.
    #[must_use]
    pub fn state_kind(&self) -> StateKind {
        match self.state {
            StateData::Closed { .. } => StateKind::Closed,
            StateData::Open { .. } => StateKind::Open,
            StateData::HalfOpen { .. } => StateKind::HalfOpen,
            StateData::ForcedOpen => StateKind::ForcedOpen,
            StateData::Disabled => StateKind::Disabled,
        }
    }

    fn settle_closed(&mut self, call: CallResult, now: Instant, random: f64) -> Option<Transition> {
        let call_counts = CallCounts::from_call(call)?;
        match call.outcome {
            CallOutcome::Success => self.consecutive_failures = 0,
            CallOutcome::Failure => {
                self.consecutive_failures = self.consecutive_failures.saturating_add(1);
            }
            CallOutcome::Throttled | CallOutcome::Cancelled => {}
        }
        self.window.add(call_counts, now);
        let counts = self.window.last_total();
        let cause = self
            .config
            .first_exceeded_threshold(counts, self.consecutive_failures)?;
        self.tripped_since = Some(now);
        Some(self.open(cause, counts, now, random))
    }

    fn try_enter_half_open(&mut self, now: Instant) -> Option<Transition> {
        match self.state {
            StateData::Open { until } if now > until => {
                let counts = self.window.total(now);
                let probes = HalfOpenProbes::new(self.config.half_open_max_calls());
                let until = now + self.config.max_half_open_duration();
                Some(self.transition_to(
                    StateData::HalfOpen { probes, until },
                    TransitionCause::OpenTimeElapsed,
                    counts,
                    now,
                ))
            }
            _ => None,
        }
    }

    fn reopen(
        &mut self,
        cause: TransitionCause,
        counts: CallCounts,
        now: Instant,
        random: f64,
    ) -> Transition {
        self.failed_rounds = self.failed_rounds.saturating_add(1);
        self.open(cause, counts, now, random)
    }

    fn open(
        &mut self,
        cause: TransitionCause,
        counts: CallCounts,
        now: Instant,
        random: f64,
    ) -> Transition {
        let jitter = 1.0 + OPEN_JITTER * (2.0 * random.clamp(0.0, 1.0) - 1.0);
        let until = now
            + self
                .config
                .open_duration_after(self.failed_rounds)
                .mul_f64(jitter);
        self.transition_to(StateData::Open { until }, cause, counts, now)
    }

    fn close(&mut self, cause: TransitionCause, counts: CallCounts, now: Instant) -> Transition {
        self.clear_history(now);
        let ramp = (!self.config.recovery_ramp().is_zero()).then_some(RecoveryRamp::new(now));
        self.transition_to(StateData::Closed { ramp }, cause, counts, now)
    }

    fn clear_history(&mut self, now: Instant) {
        self.window.clear(now);
        self.consecutive_failures = 0;
        self.failed_rounds = 0;
        self.tripped_since = None;
    }

    fn override_state(&mut self, state: StateData, now: Instant) -> Option<Transition> {
        let from = self.state_kind();
        let counts = self.window.total(now);
        let transition = self.transition_to(state, TransitionCause::Manual, counts, now);
        (from != transition.to).then_some(transition)
    }

    fn transition_to(
        &mut self,
        state: StateData,
        cause: TransitionCause,
        counts: CallCounts,
        now: Instant,
    ) -> Transition {
        let from = self.state_kind();
        self.state = state;
        self.since = now;
        self.generation += 1;
        self.consecutive_failures = 0;
        Transition {
            from,
            to: self.state_kind(),
            cause,
            counts,
        }
    }
}
