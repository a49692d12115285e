//! What a breaker follows, in a form that cannot be wrong.

use std::{fmt, num::NonZeroU32, time::Duration};

use crate::resilience::breaker::{CallCounts, Ratio, TransitionCause};

/// What trips a breaker; each may be absent, all may not.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BreakerThresholds {
    /// So many failures one after the other.
    pub consecutive_failures: Option<NonZeroU32>,
    /// This share of failed calls.
    pub failure_rate: Option<Ratio>,
    /// This share of slow calls.
    pub slow_call_rate: Option<Ratio>,
    /// No rate is looked at before so many calls.
    pub minimum_calls: NonZeroU32,
}

/// What a breaker follows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BreakerConfig {
    thresholds: BreakerThresholds,
    window: Duration,
    open_duration: Duration,
    max_open_duration: Duration,
    half_open_max_calls: NonZeroU32,
    max_half_open_duration: Duration,
    recovery_ramp: Duration,
}

/// Why a breaker cannot be made so.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum InvalidBreaker {
    /// Nothing would ever trip it.
    NoThreshold,
    /// A rate of nothing would trip on the first good call.
    ZeroRateThreshold,
    /// The window has no length.
    ZeroWindow,
    /// The longest open time lies below the first.
    MaxOpenBelowOpen,
    /// It would probe without ever having refused.
    ZeroOpenDuration,
    /// A half-open round would be over before a call can end.
    ZeroHalfOpenDuration,
}

impl fmt::Display for InvalidBreaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoThreshold => "no threshold is set, so nothing would ever trip it",
            Self::ZeroRateThreshold => "a rate threshold of 0 would trip on the first good call",
            Self::ZeroWindow => "the sampling window is zero",
            Self::MaxOpenBelowOpen => "the longest open time is below the first open time",
            Self::ZeroOpenDuration => "the open time is zero, so it would never refuse",
            Self::ZeroHalfOpenDuration => {
                "the longest half-open time is zero, so no probe could be judged"
            }
        })
    }
}

impl std::error::Error for InvalidBreaker {}

/// The times of a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerTimes {
    /// What the rates are counted over.
    pub window: Duration,
    /// The first open time.
    pub open_duration: Duration,
    /// The longest open time.
    pub max_open_duration: Duration,
    /// The longest half-open round.
    pub max_half_open_duration: Duration,
    /// How long the share of admitted calls rises after closing; zero admits all at once.
    pub recovery_ramp: Duration,
}

impl BreakerConfig {
    /// Makes a configuration.
    ///
    /// # Errors
    /// [`InvalidBreaker`] says which combination makes no sense.
    pub fn try_new(
        thresholds: BreakerThresholds,
        times: BreakerTimes,
        half_open_max_calls: NonZeroU32,
    ) -> Result<Self, InvalidBreaker> {
        let rates = [thresholds.failure_rate, thresholds.slow_call_rate];
        if thresholds.consecutive_failures.is_none() && rates.iter().all(Option::is_none) {
            return Err(InvalidBreaker::NoThreshold);
        }
        if rates.iter().flatten().any(|rate| *rate <= Ratio::ZERO) {
            return Err(InvalidBreaker::ZeroRateThreshold);
        }
        if times.window.is_zero() {
            return Err(InvalidBreaker::ZeroWindow);
        }
        if times.open_duration.is_zero() {
            return Err(InvalidBreaker::ZeroOpenDuration);
        }
        if times.max_open_duration < times.open_duration {
            return Err(InvalidBreaker::MaxOpenBelowOpen);
        }
        if times.max_half_open_duration.is_zero() {
            return Err(InvalidBreaker::ZeroHalfOpenDuration);
        }
        Ok(Self {
            thresholds,
            window: times.window,
            open_duration: times.open_duration,
            max_open_duration: times.max_open_duration,
            half_open_max_calls,
            max_half_open_duration: times.max_half_open_duration,
            recovery_ramp: times.recovery_ramp,
        })
    }

    /// What trips it.
    #[must_use]
    pub fn thresholds(&self) -> &BreakerThresholds {
        &self.thresholds
    }

    /// What the rates are counted over.
    #[must_use]
    pub fn window(&self) -> Duration {
        self.window
    }

    /// How many calls probe.
    #[must_use]
    pub fn half_open_max_calls(&self) -> NonZeroU32 {
        self.half_open_max_calls
    }

    /// The longest half-open round.
    #[must_use]
    pub fn max_half_open_duration(&self) -> Duration {
        self.max_half_open_duration
    }

    /// How long the share of admitted calls rises after closing.
    #[must_use]
    pub fn recovery_ramp(&self) -> Duration {
        self.recovery_ramp
    }

    /// The open time after so many failed half-open rounds, before jitter.
    pub(super) fn open_duration_after(&self, failed_rounds: u32) -> Duration {
        let factor = 1_u32.checked_shl(failed_rounds).unwrap_or(u32::MAX);
        self.open_duration
            .saturating_mul(factor)
            .min(self.max_open_duration)
    }

    /// The first threshold that these counts reach; the run comes first.
    pub(super) fn first_exceeded_threshold(
        &self,
        counts: CallCounts,
        consecutive_failures: u32,
    ) -> Option<TransitionCause> {
        let thresholds = &self.thresholds;
        if thresholds
            .consecutive_failures
            .is_some_and(|limit| consecutive_failures >= limit.get())
        {
            return Some(TransitionCause::ConsecutiveFailures);
        }
        if counts.total() < thresholds.minimum_calls.get() {
            return None;
        }
        if thresholds
            .failure_rate
            .is_some_and(|limit| counts.failure_rate() >= limit)
        {
            return Some(TransitionCause::FailureRate);
        }
        thresholds
            .slow_call_rate
            .is_some_and(|limit| counts.slow_call_rate() >= limit)
            .then_some(TransitionCause::SlowCallRate)
    }
}
