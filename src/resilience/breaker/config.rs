//! The configuration of a breaker, in a form that cannot be invalid.

use std::{fmt, num::NonZeroU32, time::Duration};

use crate::resilience::{
    breaker::{call::CallCounts, transition::TransitionCause},
    ratio::Ratio,
};

/// Thresholds that trip a breaker; at least one of the three must be set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BreakerThresholds {
    /// Number of consecutive failures that trips the breaker.
    pub consecutive_failures: Option<NonZeroU32>,
    /// Share of failed calls in the window that trips the breaker.
    pub failure_rate: Option<Ratio>,
    /// Share of slow calls in the window that trips the breaker.
    pub slow_call_rate: Option<Ratio>,
    /// Minimum number of calls in the window before a rate is evaluated.
    pub minimum_calls: NonZeroU32,
}

/// Configuration of a breaker: its thresholds, its times and its number of probes.
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

/// Reason why [`BreakerConfig::try_new`] rejects a configuration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum InvalidBreaker {
    /// No threshold is set, so nothing would trip the breaker.
    NoThreshold,
    /// A rate threshold is 0, so the first successful call would trip the breaker.
    ZeroRateThreshold,
    /// The length of the window is zero.
    ZeroWindow,
    /// The maximum open time is below the first open time.
    MaxOpenBelowOpen,
    /// The open time is zero, so the breaker would probe without a rejection.
    ZeroOpenDuration,
    /// The maximum half-open duration is zero, so a round would end before any call.
    ZeroHalfOpenDuration,
}

impl fmt::Display for InvalidBreaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoThreshold => "no threshold is set, so the breaker would never trip",
            Self::ZeroRateThreshold => "a rate threshold must be above 0",
            Self::ZeroWindow => "the sampling window must be longer than 0s",
            Self::MaxOpenBelowOpen => "the maximum open time must be at least the first open time",
            Self::ZeroOpenDuration => "the open time must be longer than 0s",
            Self::ZeroHalfOpenDuration => "the maximum half-open time must be longer than 0s",
        })
    }
}

impl std::error::Error for InvalidBreaker {}

/// Durations of a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerTimes {
    /// Length of the sliding window over which the rates are counted.
    pub window: Duration,
    /// Open time after the first trip.
    pub open_duration: Duration,
    /// Maximum open time after repeated failed half-open rounds, before jitter.
    pub max_open_duration: Duration,
    /// Maximum duration of a half-open round, after which the breaker reopens.
    pub max_half_open_duration: Duration,
    /// Time after closing during which the admitted share rises; zero admits all calls at once.
    pub recovery_ramp: Duration,
}

impl BreakerConfig {
    /// Creates a configuration from consistent thresholds and times.
    ///
    /// # Errors
    /// Returns [`InvalidBreaker`] with the reason if the values contradict each other.
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

    /// Returns the thresholds that trip the breaker.
    #[must_use]
    pub fn thresholds(&self) -> &BreakerThresholds {
        &self.thresholds
    }

    /// Returns the length of the window over which the rates are counted.
    #[must_use]
    pub fn window(&self) -> Duration {
        self.window
    }

    /// Returns the open time after the first trip, before jitter.
    #[must_use]
    pub fn open_duration(&self) -> Duration {
        self.open_duration
    }

    /// Returns the maximum open time, before jitter.
    #[must_use]
    pub fn max_open_duration(&self) -> Duration {
        self.max_open_duration
    }

    /// Returns the number of calls that probe the backend in one half-open round.
    #[must_use]
    pub fn half_open_max_calls(&self) -> NonZeroU32 {
        self.half_open_max_calls
    }

    /// Returns the maximum duration of a half-open round.
    #[must_use]
    pub fn max_half_open_duration(&self) -> Duration {
        self.max_half_open_duration
    }

    /// Returns the time after closing during which the admitted share rises.
    #[must_use]
    pub fn recovery_ramp(&self) -> Duration {
        self.recovery_ramp
    }

    /// Returns the open time after a number of failed half-open rounds, before jitter.
    pub(super) fn open_duration_after(&self, failed_rounds: u32) -> Duration {
        let factor = 1_u32.checked_shl(failed_rounds).unwrap_or(u32::MAX);
        self.open_duration
            .saturating_mul(factor)
            .min(self.max_open_duration)
    }

    /// Returns the first threshold that the counts reach; consecutive failures come first.
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

#[cfg(test)]
mod tests;
