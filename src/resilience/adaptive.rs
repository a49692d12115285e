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
const WINDOW: Duration = Duration::from_millis(100);
/// And over at least so many calls.
const MINIMUM_CALLS: u32 = 50;
/// Windows that the view of what is usual remembers, once it has so many.
const USUAL: u32 = 100;
/// While calls take no longer than this times the least, a limit that is new grows fast.
const STEADY: f64 = 1.2;
/// How much slower than usual is usual, for Gradient2.
const TOLERANCE: f64 = 1.5;
/// Vegas looks for a new least latency after so many windows, times the limit.
const PROBE_FACTOR: f64 = 30.0;

/// A way to find the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
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
    pub algorithm: Algorithm,
    /// Never below; at least 1.
    pub min_limit: u32,
    /// Never above; at least the least.
    pub max_limit: u32,
}

/// How it was when a call began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// Calls in flight, with this one.
    pub in_flight: u32,
    /// Whether there was no room for another.
    pub is_full: bool,
}

/// A limit that moves.
#[derive(Debug, Clone)]
pub struct AdaptiveLimit {
    config: AdaptiveConfig,
    limit: f64,
    window: Window,
    /// Whether it still grows fast.
    is_starting: bool,
    /// Gradient2: what is usual, in seconds, and the windows that it was learned from.
    usual: f64,
    windows: u32,
    /// Vegas: the least latency in seconds, the windows since it was looked for, and a limit with the latency that it had.
    least: f64,
    since_probe: f64,
    held: (f64, f64),
}

#[derive(Debug, Clone)]
struct Window {
    began: Instant,
    calls: u32,
    seconds: f64,
    most_in_flight: u32,
    /// Whether the limit held when one of the calls began.
    was_full: bool,
    has_dropped: bool,
}

impl Window {
    fn new(began: Instant) -> Self {
        Self {
            began,
            calls: 0,
            seconds: 0.0,
            most_in_flight: 0,
            was_full: false,
            has_dropped: false,
        }
    }
}

impl AdaptiveLimit {
    /// Begins at the lowest limit, AIMD with 20 within the bounds.
    #[must_use]
    pub fn new(config: AdaptiveConfig, now: Instant) -> Self {
        let (least, most) = bounds(&config);
        let is_starting = config.algorithm != Algorithm::Aimd;
        let limit = if is_starting {
            least
        } else {
            20.0_f64.clamp(least, most)
        };
        Self {
            config,
            limit,
            window: Window::new(now),
            is_starting,
            usual: 0.0,
            windows: 0,
            least: 0.0,
            since_probe: 0.0,
            held: (f64::MAX, 0.0),
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
        let (least, most) = bounds(&config);
        self.config = config;
        self.limit = self.limit.clamp(least, most);
    }

    /// Takes a call into account that ended, and took so long. Whether the limit is another now.
    pub fn note(&mut self, took: Duration, start: Start, is_drop: bool, now: Instant) -> bool {
        let window = &mut self.window;
        window.most_in_flight = window.most_in_flight.max(start.in_flight);
        window.was_full |= start.is_full;
        window.has_dropped |= is_drop;
        // How soon a call is refused says nothing about how long one takes.
        if !is_drop {
            window.calls += 1;
            window.seconds += took.as_secs_f64();
        }
        let is_over = now.saturating_duration_since(window.began) >= WINDOW
            && (window.calls >= MINIMUM_CALLS || window.has_dropped);
        if !is_over {
            return false;
        }
        let window = std::mem::replace(&mut self.window, Window::new(now));
        let before = self.limit();
        let next = self.next(&window);
        let (least, most) = bounds(&self.config);
        self.limit = next.clamp(least, most);
        before != self.limit()
    }

    fn next(&mut self, window: &Window) -> f64 {
        let latency = (window.calls > 0)
            .then(|| window.seconds / f64::from(window.calls))
            .filter(|latency| *latency > 0.0);
        match self.config.algorithm {
            Algorithm::Gradient2 => self.gradient(latency, window),
            Algorithm::Vegas => self.vegas(latency, window),
            Algorithm::Aimd if window.has_dropped => self.limit * 0.9,
            Algorithm::Aimd => self.limit + if self.is_idle(window) { 0.0 } else { 1.0 },
        }
    }

    fn gradient(&mut self, latency: Option<f64>, window: &Window) -> f64 {
        let Some(latency) = latency else {
            return self.without_latency(window);
        };
        // In shadow more may be in flight than the limit says; then it is not for the limit how long calls take.
        let holds = f64::from(window.most_in_flight) <= self.limit;
        if self.is_at_floor() && holds || self.windows == 0 {
            (self.usual, self.windows, self.is_starting) = (latency, 1, true);
        } else if !window.was_full {
            self.windows = (self.windows + 1).min(USUAL);
            self.usual += (latency - self.usual) / f64::from(self.windows);
        } else {
            // What it does at best, it can do; at once while the limit is new, else slowly, because one quick window proves little.
            let weight = if self.is_starting {
                1.0
            } else {
                1.0 / f64::from(USUAL)
            };
            self.usual += (latency - self.usual).min(0.0) * weight;
        }
        if self.is_idle(window) {
            return self.limit;
        }
        if self.is_starting {
            self.is_starting = latency <= STEADY * self.usual;
            return if self.is_starting {
                self.limit * 1.5
            } else {
                self.limit
            };
        }
        let gradient = (TOLERANCE * self.usual / latency).clamp(0.5, 1.0);
        let headroom = if gradient < 1.0 { 0.0 } else { 4.0 };
        0.8 * self.limit + 0.2 * (gradient * self.limit + headroom)
    }

    fn vegas(&mut self, latency: Option<f64>, window: &Window) -> f64 {
        let step = self.limit.log10().max(1.0);
        if window.has_dropped {
            return self.limit - step;
        }
        let Some(latency) = latency else {
            return self.limit;
        };
        self.since_probe += 1.0;
        let may_forget = self.since_probe > PROBE_FACTOR * self.limit && !window.was_full
            || self.is_insensitive(latency);
        if self.least <= 0.0 || latency < self.least || may_forget || self.is_at_floor() {
            self.is_starting |= self.is_at_floor();
            (self.least, self.since_probe) = (latency, 0.0);
        }
        if self.is_idle(window) {
            return self.limit;
        }
        if self.is_starting {
            self.is_starting = latency <= STEADY * self.least;
            return if self.is_starting {
                self.limit * 1.5
            } else {
                self.limit
            };
        }
        let queue = (self.limit * (1.0 - self.least / latency)).ceil();
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
    fn is_insensitive(&mut self, latency: f64) -> bool {
        let (limit, before) = self.held;
        if self.limit < limit && self.limit > limit * 0.92 {
            return false;
        }
        self.held = (self.limit, latency);
        self.limit < limit && (latency / before - 1.0).abs() <= 0.03
    }

    /// Nothing but drops: there is no latency to go by.
    fn without_latency(&self, window: &Window) -> f64 {
        if window.has_dropped {
            self.limit * 0.9
        } else {
            self.limit
        }
    }

    fn is_at_floor(&self) -> bool {
        self.limit <= bounds(&self.config).0
    }

    fn is_idle(&self, window: &Window) -> bool {
        !window.was_full && f64::from(window.most_in_flight) * 2.0 < self.limit
    }
}

fn bounds(config: &AdaptiveConfig) -> (f64, f64) {
    let least = config.min_limit.max(1);
    (least.into(), config.max_limit.max(least).into())
}

#[cfg(test)]
mod tests;
