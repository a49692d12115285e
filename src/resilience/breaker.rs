//! The circuit breaker: when calls to a failing backend are rejected, and when they resume.
//!
//! A *closed* breaker admits calls and counts their results. If too many fail or too many are
//! slow, it *trips* and becomes *open*. An open breaker rejects calls, so that clients receive
//! a fast response and the backend can recover. After the open time the breaker is *half-open*:
//! a few calls probe the backend, and their results close or reopen it. A closed breaker first
//! admits a rising share of calls, because a recovered backend has cold caches and full queues.
//!
//! | state | admits | counts results | ends by |
//! | --- | --- | --- | --- |
//! | closed | all calls; a rising share during the recovery ramp | yes | a reached threshold |
//! | open | none | late results only | the first call after the open time |
//! | half-open | at most `half_open_max_calls` | of its probes only | the probe results, or its maximum duration |
//! | forced open | none | late results only | an operator |
//! | disabled | all calls | late results only | an operator |
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
//!   it, so it cannot decide on the probes (Polly #216, Hystrix #1350).
//! - A call without a result returns its permit, so half-open cannot get stuck (Sentinel #1638,
//!   resilience4j #935).
//!
//! Semantics and names follow Resilience4j (`CircuitBreakerStateMachine.java`). The ramp
//! follows Traefik. The module does not know which responses are failures. The caller
//! classifies them.

mod config;
mod half_open;
#[cfg(test)]
mod tests;

use std::{
    ops::{AddAssign, SubAssign},
    time::{Duration, Instant},
};

pub use crate::resilience::breaker::config::{
    BreakerConfig, BreakerThresholds, BreakerTimes, InvalidBreaker,
};
use crate::resilience::{
    breaker::half_open::{HalfOpenProbes, ProbeVerdict},
    ratio::Ratio,
    window::SlidingWindow,
};

/// Maximum deviation of the open time from its value, as a share of that value.
const OPEN_JITTER: f64 = 0.2;

/// How a call ended, as far as a breaker is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallOutcome {
    /// The backend processed the call, or rejected it because of an error of the client.
    Success,
    /// The backend failed to process the call.
    Failure,
    /// The backend works, and rejected the call because of an overload.
    Throttled,
    /// The call has no result: the client left, or the call never reached the backend.
    ///
    /// It is not counted, and its permit is returned.
    Cancelled,
}

/// Speed of a call, compared with the slow-call threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speed {
    /// The call took at most the threshold.
    Fast,
    /// The call took longer than the threshold.
    Slow,
}

impl Speed {
    /// Compares a duration with the threshold; a call that takes exactly the threshold is fast.
    #[must_use]
    pub fn from_duration(duration: Duration, threshold: Duration) -> Self {
        if duration > threshold {
            Self::Slow
        } else {
            Self::Fast
        }
    }
}

/// State of a breaker, without the data of that state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StateKind {
    /// Calls are admitted and counted.
    Closed,
    /// Calls are rejected until the open time is over.
    Open,
    /// A limited number of calls probes the backend.
    HalfOpen,
    /// Calls are rejected until an operator ends this state.
    ForcedOpen,
    /// Calls are admitted without being counted, until an operator ends this state.
    Disabled,
}

/// Cause of a state transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransitionCause {
    /// The number of consecutive failures reached its threshold.
    ConsecutiveFailures,
    /// The failure rate reached its threshold.
    FailureRate,
    /// The slow-call rate reached its threshold.
    SlowCallRate,
    /// The open time is over, and a call arrived.
    OpenTimeElapsed,
    /// The probes of a half-open round passed.
    ProbesPassed,
    /// The probes of a half-open round failed.
    ProbesFailed,
    /// The half-open round exceeded its maximum duration.
    ProbesTimedOut,
    /// An operator or the recovery requested the transition.
    Manual,
}

/// A transition from one state to another, for logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq)]
#[must_use = "a transition that is not told is invisible"]
pub struct Transition {
    /// State before the transition.
    pub from: StateKind,
    /// State after the transition.
    pub to: StateKind,
    /// Cause of the transition.
    pub cause: TransitionCause,
    /// Counts of the window or of the probes at the transition.
    pub counts: CallCounts,
}

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
    pub retry_after: Option<Duration>,
}

/// Number of calls by result and by speed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CallCounts {
    /// Calls that succeeded, fast or slow.
    pub successes: u32,
    /// Calls that failed or were throttled, fast or slow.
    pub failures: u32,
    /// Calls that took longer than the slow-call threshold, whatever their result.
    pub slow_calls: u32,
}

impl CallCounts {
    /// Returns the number of all counted calls.
    #[must_use]
    pub fn total(self) -> u32 {
        self.successes.saturating_add(self.failures)
    }

    /// Returns the share of calls that failed or were throttled.
    #[must_use]
    pub fn failure_rate(self) -> Ratio {
        Ratio::from_fraction(self.failures, self.total())
    }

    /// Returns the share of calls that were slow.
    #[must_use]
    pub fn slow_call_rate(self) -> Ratio {
        Ratio::from_fraction(self.slow_calls, self.total())
    }
}

impl AddAssign for CallCounts {
    fn add_assign(&mut self, other: Self) {
        self.successes = self.successes.saturating_add(other.successes);
        self.failures = self.failures.saturating_add(other.failures);
        self.slow_calls = self.slow_calls.saturating_add(other.slow_calls);
    }
}

impl SubAssign for CallCounts {
    fn sub_assign(&mut self, other: Self) {
        self.successes = self.successes.saturating_sub(other.successes);
        self.failures = self.failures.saturating_sub(other.failures);
        self.slow_calls = self.slow_calls.saturating_sub(other.slow_calls);
    }
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

/// State of the recovery ramp after closing.
///
/// `credit` accumulates the admitted share of each call until it reaches one whole call.
#[derive(Debug, Clone, Copy)]
struct RecoveryRamp {
    started_at: Instant,
    credit: f64,
}

/// A circuit breaker in front of one backend.
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
        outcome: CallOutcome,
        speed: Speed,
        now: Instant,
        random: f64,
    ) -> Option<Transition> {
        if permit.generation != self.generation {
            if outcome != CallOutcome::Cancelled {
                self.late_results = self.late_results.saturating_add(1);
            }
            return None;
        }
        let is_slow = speed == Speed::Slow;
        match &mut self.state {
            StateData::Closed { .. } => self.settle_closed(outcome, is_slow, now, random),
            StateData::HalfOpen { probes, .. } => {
                let verdict = probes.settle(&self.config, outcome, is_slow);
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

    fn settle_closed(
        &mut self,
        outcome: CallOutcome,
        is_slow: bool,
        now: Instant,
        random: f64,
    ) -> Option<Transition> {
        let is_slow = u32::from(is_slow);
        match outcome {
            CallOutcome::Cancelled => return None,
            CallOutcome::Success => {
                self.consecutive_failures = 0;
                self.window.add(
                    CallCounts {
                        successes: 1,
                        slow_calls: is_slow,
                        ..CallCounts::default()
                    },
                    now,
                );
            }
            CallOutcome::Failure => {
                self.consecutive_failures = self.consecutive_failures.saturating_add(1);
                self.window.add(
                    CallCounts {
                        failures: 1,
                        slow_calls: is_slow,
                        ..CallCounts::default()
                    },
                    now,
                );
            }
            CallOutcome::Throttled => self.window.add(
                CallCounts {
                    failures: 1,
                    slow_calls: is_slow,
                    ..CallCounts::default()
                },
                now,
            ),
        }
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
        let ramp = (!self.config.recovery_ramp().is_zero()).then_some(RecoveryRamp {
            started_at: now,
            credit: 1.0,
        });
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

enum RampDecision {
    Admitted,
    Rejected,
    Finished,
}

impl RecoveryRamp {
    fn admitted_ratio(self, span: Duration, now: Instant) -> Ratio {
        let elapsed = now.saturating_duration_since(self.started_at);
        if elapsed >= span {
            return Ratio::ONE;
        }
        Ratio::from_percent(100.0 * elapsed.as_secs_f64() / span.as_secs_f64())
            .unwrap_or(Ratio::ONE)
    }

    /// Adds the admitted share of the moment to the credit, and spends one whole credit per
    /// admitted call.
    fn admit(&mut self, span: Duration, now: Instant) -> RampDecision {
        let share = self.admitted_ratio(span, now);
        if share >= Ratio::ONE {
            return RampDecision::Finished;
        }
        self.credit += share.value();
        if self.credit < 1.0 {
            return RampDecision::Rejected;
        }
        self.credit -= 1.0;
        RampDecision::Admitted
    }
}
