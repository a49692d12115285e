//! When to stop asking a backend that fails, and how to begin again.
//!
//! A breaker that is *closed* lets calls through and counts them. When too many fail, or too many are slow, it *trips*: it is
//! *open* and refuses, so that callers get a quick answer and the backend gets quiet. After a while it is *half-open*: a few
//! calls probe, and their verdict closes or opens it. After closing it admits a rising share of calls, because a backend that
//! has just come back has cold caches and full queues.
//!
//! | state | lets calls through | counts | leaves by |
//! | --- | --- | --- | --- |
//! | closed | all; a rising share during the recovery ramp | yes | a threshold reached |
//! | open | none | late results, which move nothing | the first call after the open time |
//! | half-open | at most `half_open_max_calls` | its own, fresh | all probes judged, or a verdict that is certain, or too long |
//! | forced open | none | nothing | by hand |
//! | disabled | all | nothing | by hand |
//!
//! What trips: a run of consecutive failures, the failure rate, or the slow-call rate; each can be absent. The run is looked at
//! first and has no minimum of calls, so that a backend that is plainly down is left at once; the rates need `minimum_calls`,
//! so that two failures out of three at night trip nothing. A throttled call (429, gRPC 8) counts as a failure for the rate
//! and not for the run: the backend works, and says that it is asked too much (linkerd2-proxy, `unified.rs`).
//!
//! The open time doubles with each half-open round that failed, from `open_duration` to `max_open_duration`, and is jittered by
//! 20 % so that many sidecars do not probe in step.
//!
//! Two traps are designed away. A result that arrives late, from before a change of state, is recognised by the generation
//! in its permit and cannot judge the probe (Polly #216, Hystrix #1350). A call that ends without a verdict gives its permit
//! back, so that half-open cannot wedge (Sentinel #1638, resilience4j #935).
//!
//! Semantics and names follow resilience4j (`CircuitBreakerStateMachine.java`); the ramp follows Traefik.

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

/// The share by which the open time is drawn around its value.
const OPEN_JITTER: f64 = 0.2;

/// How a call ended, as far as a breaker cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallOutcome {
    /// The backend did what was asked, or refused for a reason of the caller's.
    Success,
    /// The backend failed.
    Failure,
    /// The backend works, and refused because it is asked too much.
    Throttled,
    /// Nobody can say: the caller left, or the call never reached the backend. Counted nowhere; the permit is given back.
    Cancelled,
}

/// How long a call took, as far as a breaker cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speed {
    /// Within the threshold.
    Fast,
    /// Beyond it.
    Slow,
}

impl Speed {
    /// A call is slow when it takes longer than the threshold; as long as it is still fast.
    #[must_use]
    pub fn from_duration(duration: Duration, threshold: Duration) -> Self {
        if duration > threshold {
            Self::Slow
        } else {
            Self::Fast
        }
    }
}

/// The states, without what belongs to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StateKind {
    /// Calls pass and are counted.
    Closed,
    /// Calls are refused.
    Open,
    /// A few calls probe.
    HalfOpen,
    /// Refuses until somebody says otherwise.
    ForcedOpen,
    /// Lets all pass until somebody says otherwise.
    Disabled,
}

/// Why the state changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransitionCause {
    /// So many calls failed one after the other.
    ConsecutiveFailures,
    /// The failure rate reached its threshold.
    FailureRate,
    /// The slow-call rate reached its threshold.
    SlowCallRate,
    /// The open time is over.
    OpenTimeElapsed,
    /// The probes passed.
    ProbesPassed,
    /// The probes failed.
    ProbesFailed,
    /// The probes were not judged in time.
    ProbesTimedOut,
    /// Somebody asked for it.
    Manual,
}

/// A change of state, to be told to whoever listens.
#[derive(Debug, Clone, Copy, PartialEq)]
#[must_use = "a transition that is not told is invisible"]
pub struct Transition {
    /// The state that was left.
    pub from: StateKind,
    /// The state that was entered.
    pub to: StateKind,
    /// Why.
    pub cause: TransitionCause,
    /// The counts that led to it.
    pub counts: CallCounts,
}

/// The right to make one call. Given back by [`Breaker::settle`], exactly once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a permit that is not settled holds its place for ever"]
pub struct Permit {
    generation: u64,
}

/// The call may not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rejected {
    /// The state that refuses.
    pub state: StateKind,
    /// When it is worth asking again; `None` if nobody can say.
    pub retry_after: Option<Duration>,
}

/// Calls by result and speed.
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
    /// All calls.
    #[must_use]
    pub fn total(self) -> u32 {
        self.successes.saturating_add(self.failures)
    }

    /// The share of calls that failed.
    #[must_use]
    pub fn failure_rate(self) -> Ratio {
        Ratio::from_fraction(self.failures, self.total())
    }

    /// The share of calls that were slow.
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

/// What a view shows of a breaker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BreakerSnapshot {
    /// The state now.
    pub state: StateKind,
    /// Since when it is in this state.
    pub since: Instant,
    /// The counts of the window, or of the probes when half-open.
    pub counts: CallCounts,
    /// The length of the present run of failures.
    pub consecutive_failures: u32,
    /// When an open breaker probes, or a half-open one gives up.
    pub deadline: Option<Instant>,
    /// Since when it has not been closed, through all its half-open rounds.
    pub tripped_since: Option<Instant>,
    /// The share of calls that is admitted.
    pub admitted_ratio: Ratio,
    /// Calls refused since the start.
    pub rejected_calls: u64,
    /// Results that came after a change of state.
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

/// The rising share of calls after closing; `credit` carries what one call leaves over for the next.
#[derive(Debug, Clone, Copy)]
struct RecoveryRamp {
    started_at: Instant,
    credit: f64,
}

/// One circuit breaker.
#[derive(Debug)]
pub struct Breaker {
    config: BreakerConfig,
    state: StateData,
    since: Instant,
    generation: u64,
    window: SlidingWindow<CallCounts>,
    consecutive_failures: u32,
    /// Half-open rounds that failed since it was last closed.
    failed_rounds: u32,
    tripped_since: Option<Instant>,
    rejected_calls: u64,
    late_results: u64,
}

impl Breaker {
    /// Makes a closed breaker that has seen nothing.
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

    /// Asks whether one call may be made. An open breaker whose time is over becomes half-open here, at the first call strictly
    /// after its deadline, so that no probe is spent while nobody calls.
    ///
    /// # Errors
    /// [`Rejected`] if the call may not be made.
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

    /// Takes the result of a call. `random` draws the open time, should this result trip the breaker.
    ///
    /// A permit from an earlier generation counts as late and moves nothing.
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

    /// Ends a half-open round that was not judged in time.
    pub fn end_expired_half_open(&mut self, now: Instant, random: f64) -> Option<Transition> {
        match &self.state {
            StateData::HalfOpen { probes, until } if now > *until => {
                let counts = probes.counts();
                Some(self.reopen(TransitionCause::ProbesTimedOut, counts, now, random))
            }
            _ => None,
        }
    }

    /// When [`Breaker::tick`] would next do something, or an open breaker would probe.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        match &self.state {
            StateData::Open { until } | StateData::HalfOpen { until, .. } => Some(*until),
            StateData::Closed { .. } | StateData::ForcedOpen | StateData::Disabled => None,
        }
    }

    /// Refuses all calls until [`Breaker::reset`].
    pub fn force_open(&mut self, now: Instant) -> Option<Transition> {
        self.tripped_since.get_or_insert(now);
        self.override_state(StateData::ForcedOpen, now)
    }

    /// Lets all calls pass, uncounted, until [`Breaker::reset`].
    pub fn disable(&mut self, now: Instant) -> Option<Transition> {
        self.tripped_since = None;
        self.override_state(StateData::Disabled, now)
    }

    /// Closes the breaker with empty counts, whatever its state, and lets it decide again.
    pub fn reset(&mut self, now: Instant) -> Option<Transition> {
        self.clear_history(now);
        self.override_state(StateData::Closed { ramp: None }, now)
    }

    /// Ends a state that was set by hand, and lets the breaker decide again; any other state is kept.
    pub fn clear_override(&mut self, now: Instant) -> Option<Transition> {
        match self.state {
            StateData::ForcedOpen | StateData::Disabled => self.reset(now),
            StateData::Closed { .. } | StateData::Open { .. } | StateData::HalfOpen { .. } => None,
        }
    }

    /// Follows a new configuration. State and counts are kept; a new window length begins empty, because counts over another
    /// length mean something else.
    pub fn reconfigure(&mut self, config: BreakerConfig, now: Instant) {
        if config.window() != self.config.window() {
            self.window = SlidingWindow::new(config.window(), now);
        }
        self.config = config;
    }

    /// What the breaker follows.
    #[must_use]
    pub fn config(&self) -> &BreakerConfig {
        &self.config
    }

    /// What a view shows.
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

    /// The state now.
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

    /// Each call adds the share of the moment to the credit; a whole one is spent on a call.
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
