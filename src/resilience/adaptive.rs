//! How many calls may be in flight, found out from how long they take.
//!
//! A fixed bound is right on the day it was measured. These move the bound with the backend: up while calls take as long as ever, down when
//! they take longer, which is when they queue there. Nothing probes: the bound is never lowered to measure, so that measuring refuses
//! nobody (what Envoy's gradient is complained about for). The rules are those of Netflix's concurrency-limits 0.4; `L` is the limit, `R`
//! the mean latency of a window:
//!
//! | algorithm | next limit |
//! | --- | --- |
//! | Gradient2 | `0.8 L + 0.2 g L`, `g = 1.5 usual / R` in `0.5..=1`; `0.8 L + 0.2 (L + 4)` where `g` is 1 |
//! | Vegas | with `queue = L (1 - least / R)`: up by `6 log L` if at most `log L`, by `log L` below `3 log L`; down by `log L` above `6 log L`, and on drops |
//! | AIMD | `0.9 L` on drops, else `L + 1` |
//!
//! A limit of which less than half is used, and that held nobody, is not raised: it was not the limit that held. A drop is a call that the backend refused or
//! never answered in time.
//!
//! Two things differ from Netflix's. What is usual, or the least, is learned there whatever the load, so that under an overload that lasts the
//! overload becomes usual, and the limit creeps up. Here it is learned while the limit does not hold, and at the lowest limit, where what
//! calls take is not for their number; Vegas takes it from there, too, that calls take no less time under a lower limit. And all but AIMD begin at the lowest limit and grow by half in each window while calls take no longer
//! for it, as TCP starts; so the first view of what is usual is not that of an overload.

use std::time::{Duration, Instant};

/// Looked at over so long.
const WINDOW_DURATION: Duration = Duration::from_millis(100);
/// And over at least so many calls.
const MIN_WINDOW_CALLS: u32 = 50;
/// Windows that the view of what is usual remembers, once it has so many.
const BASELINE_WINDOWS: u32 = 100;
/// While calls take no longer than this times the least, a limit that is new grows fast.
const SLOW_START_TOLERANCE: f64 = 1.2;
/// How much slower than usual is usual, for Gradient2.
const LATENCY_TOLERANCE: f64 = 1.5;
/// Vegas looks for a new least latency after so many windows, times the limit.
const PROBE_FACTOR: f64 = 30.0;

/// A way to find the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LimitAlgorithm {
    /// Compares latency with its own past.
    #[default]
    Gradient2,
    /// Compares latency with the least.
    Vegas,
    /// Looks at failures only.
    Aimd,
}

/// What an adaptive limit follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdaptiveConfig {
    /// How.
    pub algorithm: LimitAlgorithm,
    /// Never below; at least 1.
    pub min_limit: u32,
    /// Never above; at least the least.
    pub max_limit: u32,
}

/// How it was when a call began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallStart {
    /// Calls in flight, with this one.
    pub in_flight: u32,
    /// Whether there was no room for another.
    pub is_at_limit: bool,
}

/// A limit that moves.
#[derive(Debug, Clone)]
pub struct AdaptiveLimit {
    config: AdaptiveConfig,
    limit: f64,
    current_window: SampleWindow,
    /// Whether it still grows fast.
    is_in_slow_start: bool,
    /// Gradient2: what is usual, in seconds, and the windows that it was learned from.
    baseline_seconds: f64,
    baseline_windows: u32,
    /// Vegas: the least latency in seconds, the windows since it was looked for, and a limit with the latency that it had.
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
    /// Whether the limit held when one of the calls began.
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
    /// Begins at the lowest limit, AIMD with 20 within the bounds.
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

    /// The limit, at least 1.
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

    /// What it follows.
    #[must_use]
    pub fn config(&self) -> &AdaptiveConfig {
        &self.config
    }

    /// Follows other numbers; what was learned is kept within the new bounds.
    pub fn reconfigure(&mut self, config: AdaptiveConfig) {
        let (least, most) = limit_bounds(&config);
        self.config = config;
        self.limit = self.limit.clamp(least, most);
    }

    /// Takes a call into account that ended, and took so long. Whether the limit is another now.
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
        // How soon a call is refused says nothing about how long one takes.
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
        // In shadow more may be in flight than the limit says; then it is not for the limit how long calls take.
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
            // What it does at best, it can do; at once while the limit is new, else slowly, because one quick window proves little.
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

    /// Whether calls take as long as they did with a higher limit: then they do not queue, and are as quick as they can be.
    fn is_latency_unchanged_by_limit(&mut self, latency: f64) -> bool {
        let (limit, before) = self.higher_limit_and_latency;
        if self.limit < limit && self.limit > limit * 0.92 {
            return false;
        }
        self.higher_limit_and_latency = (self.limit, latency);
        self.limit < limit && (latency / before - 1.0).abs() <= 0.03
    }

    /// Nothing but drops: there is no latency to go by.
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
