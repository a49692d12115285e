//! An adaptive concurrency limit, derived from the latency of calls.
//!
//! A fixed limit is correct only on the day of its measurement. The algorithms here move the
//! limit with the backend. They raise it while calls take as long as usual. They lower it when
//! calls take longer, because calls then queue at the backend. They never lower the limit only
//! to measure, so a measurement rejects no call. Envoy's gradient controller is criticised for
//! such rejections.
//!
//! The rules are those of Netflix's concurrency-limits 0.4. `L` is the limit and `R` is the
//! mean latency of a window:
//!
//! | algorithm | next limit |
//! | --- | --- |
//! | Gradient2 | `0.8 L + 0.2 g L`, with `g = 1.5 baseline / R` in `0.5..=1` |
//! | Gradient2, `g` is 1 | `0.8 L + 0.2 (L + 4)` |
//! | Vegas, `queue <= log L` | `L + 6 log L`, with `queue = L (1 - minimum / R)` |
//! | Vegas, `queue < 3 log L` | `L + log L` |
//! | Vegas, `queue > 6 log L`, or drops | `L - log L` |
//! | AIMD, drops | `0.9 L` |
//! | AIMD | `L + 1` |
//!
//! `log` is the decimal logarithm, but at least 1. A drop is a call that the backend rejected,
//! or that timed out. Gradient2 uses drops only in a window without any latency, where the next
//! limit is `0.9 L`. A limit is not raised if no call reached it and less than half of it is
//! used.
//!
//! Three rules differ from Netflix's:
//!
//! - Netflix learns the baseline and the minimum under any load. Under a long overload, the
//!   overload then becomes the baseline, and the limit creeps up. Here a higher value is
//!   learned only while no call reaches the limit, or at the minimum limit. At the minimum
//!   limit, latency does not depend on concurrency.
//! - Vegas also learns its minimum when a lower limit does not change the latency.
//! - Gradient2 and Vegas start at the minimum limit and grow by half in each window, like TCP
//!   slow start. Growth ends when calls take longer because of it. The first baseline is
//!   therefore not that of an overload. Slow start begins again when the limit is back at its
//!   minimum.
//!
//! The module does not count calls in flight and rejects none. That is the task of
//! [`crate::resilience::concurrency`].

use std::{
    fmt,
    time::{Duration, Instant},
};

/// Minimum duration of a sample window.
const WINDOW_DURATION: Duration = Duration::from_millis(100);
/// Minimum number of calls in a sample window without drops.
const MIN_WINDOW_CALLS: u32 = 50;
/// Maximum number of windows over which the Gradient2 baseline is averaged.
const BASELINE_WINDOWS: u32 = 100;
/// Slow start continues while the latency is at most this multiple of the baseline or minimum.
const SLOW_START_TOLERANCE: f64 = 1.2;
/// Gradient2 accepts a latency up to this multiple of the baseline.
const LATENCY_TOLERANCE: f64 = 1.5;
/// Vegas learns a new minimum latency after this many windows, multiplied by the limit.
const PROBE_FACTOR: f64 = 30.0;

/// Algorithm that derives the next limit from a window of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LimitAlgorithm {
    /// Compares the latency of a window with a long-term baseline.
    #[default]
    Gradient2,
    /// Compares the latency of a window with the minimum latency.
    Vegas,
    /// Ignores latency: lowers the limit on drops and raises it otherwise.
    Aimd,
}

/// Writes the name of the algorithm.
impl fmt::Display for LimitAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gradient2 => "Gradient2",
            Self::Vegas => "Vegas",
            Self::Aimd => "AIMD",
        })
    }
}

/// Configuration of an adaptive limit: its algorithm and its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdaptiveConfig {
    /// Algorithm that moves the limit within its bounds.
    pub algorithm: LimitAlgorithm,
    /// Lower bound of the limit, in calls; 0 counts as 1.
    pub min_limit: u32,
    /// Upper bound of the limit, in calls; a value below `min_limit` counts as `min_limit`.
    pub max_limit: u32,
}

/// Load at the start of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallStart {
    /// Calls in flight, including the call itself.
    pub in_flight: u32,
    /// Whether the calls in flight reached the limit with this call.
    pub is_at_limit: bool,
}

/// A concurrency limit that follows the latency of a backend.
#[derive(Debug, Clone)]
pub struct AdaptiveLimit {
    config: AdaptiveConfig,
    limit: f64,
    current_window: SampleWindow,
    /// Whether the limit is in slow start and grows by half in each window.
    is_in_slow_start: bool,
    /// Gradient2: the baseline latency in seconds, and the number of windows that it averages.
    baseline_seconds: f64,
    baseline_windows: u32,
    /// Vegas: the minimum latency in seconds, and the number of windows since it was learned.
    /// `higher_limit_and_latency` holds an earlier limit and the mean latency in seconds under
    /// it.
    min_latency_seconds: f64,
    windows_since_min_latency: f64,
    higher_limit_and_latency: (f64, f64),
}

#[derive(Debug, Clone)]
struct SampleWindow {
    started_at: Instant,
    calls: u32,
    latency_sum_seconds: f64,
    max_in_flight: u32,
    /// Whether the calls in flight reached the limit when one of the calls started.
    was_at_limit: bool,
    has_dropped: bool,
}

impl SampleWindow {
    fn new(began: Instant) -> Self {
        Self {
            started_at: began,
            calls: 0,
            latency_sum_seconds: 0.0,
            max_in_flight: 0,
            was_at_limit: false,
            has_dropped: false,
        }
    }
}

impl AdaptiveLimit {
    /// Creates a limit at its lower bound, or at 20 within the bounds for AIMD.
    #[must_use]
    pub fn new(config: AdaptiveConfig, now: Instant) -> Self {
        let (least, most) = limit_bounds(&config);
        let is_starting = config.algorithm != LimitAlgorithm::Aimd;
        let limit = if is_starting {
            least
        } else {
            20.0_f64.clamp(least, most)
        };
        Self {
            config,
            limit,
            current_window: SampleWindow::new(now),
            is_in_slow_start: is_starting,
            baseline_seconds: 0.0,
            baseline_windows: 0,
            min_latency_seconds: 0.0,
            windows_since_min_latency: 0.0,
            higher_limit_and_latency: (f64::MAX, 0.0),
        }
    }

    /// Returns the current limit in calls, at least 1.
    #[must_use]
    pub fn limit(&self) -> u32 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "within the bounds of the configuration, which are positive"
        )]
        let whole = self.limit as u32;
        whole.max(1)
    }

    /// Returns the configuration that the limit currently follows.
    #[must_use]
    pub fn config(&self) -> &AdaptiveConfig {
        &self.config
    }

    /// Applies a new configuration. The learned latencies remain, and the limit is clamped to
    /// the new bounds.
    pub fn reconfigure(&mut self, config: AdaptiveConfig) {
        let (least, most) = limit_bounds(&config);
        self.config = config;
        self.limit = self.limit.clamp(least, most);
    }

    /// Records a completed call and returns whether the limit changed.
    ///
    /// `took` is the latency of the call and `start` is the load at its start. `is_drop` marks
    /// a call that the backend rejected or that timed out.
    pub fn record_sample(
        &mut self,
        took: Duration,
        start: CallStart,
        is_drop: bool,
        now: Instant,
    ) -> bool {
        let window = &mut self.current_window;
        window.max_in_flight = window.max_in_flight.max(start.in_flight);
        window.was_at_limit |= start.is_at_limit;
        window.has_dropped |= is_drop;
        // The latency of a dropped call says nothing about how long a call takes.
        if !is_drop {
            window.calls += 1;
            window.latency_sum_seconds += took.as_secs_f64();
        }
        let is_over = now.saturating_duration_since(window.started_at) >= WINDOW_DURATION
            && (window.calls >= MIN_WINDOW_CALLS || window.has_dropped);
        if !is_over {
            return false;
        }
        let window = std::mem::replace(&mut self.current_window, SampleWindow::new(now));
        let before = self.limit();
        let next = self.compute_next_limit(&window);
        let (least, most) = limit_bounds(&self.config);
        self.limit = next.clamp(least, most);
        before != self.limit()
    }

    fn compute_next_limit(&mut self, window: &SampleWindow) -> f64 {
        let latency = (window.calls > 0)
            .then(|| window.latency_sum_seconds / f64::from(window.calls))
            .filter(|latency| *latency > 0.0);
        match self.config.algorithm {
            LimitAlgorithm::Gradient2 => self.compute_gradient2_limit(latency, window),
            LimitAlgorithm::Vegas => self.compute_vegas_limit(latency, window),
            LimitAlgorithm::Aimd if window.has_dropped => self.limit * 0.9,
            LimitAlgorithm::Aimd => self.limit + if self.is_underused(window) { 0.0 } else { 1.0 },
        }
    }

    fn compute_gradient2_limit(&mut self, latency: Option<f64>, window: &SampleWindow) -> f64 {
        let Some(latency) = latency else {
            return self.compute_limit_without_latency(window);
        };
        // In shadow mode more calls may be in flight than the limit allows. Their latency then
        // does not depend on the limit.
        let is_within_limit = f64::from(window.max_in_flight) <= self.limit;
        if self.is_at_min_limit() && is_within_limit || self.baseline_windows == 0 {
            (
                self.baseline_seconds,
                self.baseline_windows,
                self.is_in_slow_start,
            ) = (latency, 1, true);
        } else if !window.was_at_limit {
            self.baseline_windows = (self.baseline_windows + 1).min(BASELINE_WINDOWS);
            self.baseline_seconds +=
                (latency - self.baseline_seconds) / f64::from(self.baseline_windows);
        } else {
            // A lower latency proves that the backend can be this fast. Slow start accepts it
            // at once. Later it counts only partly, because one fast window proves little.
            let weight = if self.is_in_slow_start {
                1.0
            } else {
                1.0 / f64::from(BASELINE_WINDOWS)
            };
            self.baseline_seconds += (latency - self.baseline_seconds).min(0.0) * weight;
        }
        if self.is_underused(window) {
            return self.limit;
        }
        if self.is_in_slow_start {
            self.is_in_slow_start = latency <= SLOW_START_TOLERANCE * self.baseline_seconds;
            return if self.is_in_slow_start {
                self.limit * 1.5
            } else {
                self.limit
            };
        }
        let gradient = (LATENCY_TOLERANCE * self.baseline_seconds / latency).clamp(0.5, 1.0);
        let headroom = if gradient < 1.0 { 0.0 } else { 4.0 };
        0.8 * self.limit + 0.2 * (gradient * self.limit + headroom)
    }

    fn compute_vegas_limit(&mut self, latency: Option<f64>, window: &SampleWindow) -> f64 {
        let step = self.limit.log10().max(1.0);
        if window.has_dropped {
            return self.limit - step;
        }
        let Some(latency) = latency else {
            return self.limit;
        };
        self.windows_since_min_latency += 1.0;
        let should_reset_min_latency = self.windows_since_min_latency > PROBE_FACTOR * self.limit
            && !window.was_at_limit
            || self.is_latency_unchanged_by_limit(latency);
        if self.min_latency_seconds <= 0.0
            || latency < self.min_latency_seconds
            || should_reset_min_latency
            || self.is_at_min_limit()
        {
            self.is_in_slow_start |= self.is_at_min_limit();
            (self.min_latency_seconds, self.windows_since_min_latency) = (latency, 0.0);
        }
        if self.is_underused(window) {
            return self.limit;
        }
        if self.is_in_slow_start {
            self.is_in_slow_start = latency <= SLOW_START_TOLERANCE * self.min_latency_seconds;
            return if self.is_in_slow_start {
                self.limit * 1.5
            } else {
                self.limit
            };
        }
        let queue = (self.limit * (1.0 - self.min_latency_seconds / latency)).ceil();
        if queue <= step {
            self.limit + 6.0 * step
        } else if queue < 3.0 * step {
            self.limit + step
        } else if queue > 6.0 * step {
            self.limit - step
        } else {
            self.limit
        }
    }

    /// Returns whether the latency is the same as under a higher limit.
    ///
    /// Calls then do not queue, so the current latency is the minimum.
    fn is_latency_unchanged_by_limit(&mut self, latency: f64) -> bool {
        let (limit, before) = self.higher_limit_and_latency;
        if self.limit < limit && self.limit > limit * 0.92 {
            return false;
        }
        self.higher_limit_and_latency = (self.limit, latency);
        self.limit < limit && (latency / before - 1.0).abs() <= 0.03
    }

    /// Returns the next limit after a window without latencies, which consists only of drops.
    fn compute_limit_without_latency(&self, window: &SampleWindow) -> f64 {
        if window.has_dropped {
            self.limit * 0.9
        } else {
            self.limit
        }
    }

    fn is_at_min_limit(&self) -> bool {
        self.limit <= limit_bounds(&self.config).0
    }

    fn is_underused(&self, window: &SampleWindow) -> bool {
        !window.was_at_limit && f64::from(window.max_in_flight) * 2.0 < self.limit
    }
}

fn limit_bounds(config: &AdaptiveConfig) -> (f64, f64) {
    let least = config.min_limit.max(1);
    (least.into(), config.max_limit.max(least).into())
}

#[cfg(test)]
mod tests;
