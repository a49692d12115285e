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
//! A limit of which less than half is used is not raised: it was not the limit that held. A drop is a call that the backend refused or
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
        Self { began, calls: 0, seconds: 0.0, most_in_flight: 0, was_full: false, has_dropped: false }
    }
}

impl AdaptiveLimit {
    /// Begins at the lowest limit, AIMD with 20 within the bounds.
    #[must_use]
    pub fn new(config: AdaptiveConfig, now: Instant) -> Self {
        let (least, most) = bounds(&config);
        let is_starting = config.algorithm != Algorithm::Aimd;
        let limit = if is_starting { least } else { 20.0_f64.clamp(least, most) };
        Self { config, limit, window: Window::new(now), is_starting, usual: 0.0, windows: 0, least: 0.0, since_probe: 0.0, held: (f64::MAX, 0.0) }
    }

    /// The limit, at least 1.
    #[must_use]
    pub fn limit(&self) -> u32 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within the bounds of the configuration, which are positive")]
        let whole = self.limit as u32;
        whole.max(1)
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
        let is_over = now.saturating_duration_since(window.began) >= WINDOW && (window.calls >= MINIMUM_CALLS || window.has_dropped);
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
        let latency = (window.calls > 0).then(|| window.seconds / f64::from(window.calls)).filter(|latency| *latency > 0.0);
        match self.config.algorithm {
            Algorithm::Gradient2 => self.gradient(latency, window),
            Algorithm::Vegas => self.vegas(latency, window),
            Algorithm::Aimd if window.has_dropped => self.limit * 0.9,
            Algorithm::Aimd => self.limit + if self.is_idle(window) { 0.0 } else { 1.0 },
        }
    }

    fn gradient(&mut self, latency: Option<f64>, window: &Window) -> f64 {
        let Some(latency) = latency else { return self.without_latency(window) };
        // In shadow more may be in flight than the limit says; then it is not for the limit how long calls take.
        let holds = f64::from(window.most_in_flight) <= self.limit;
        if self.is_at_floor() && holds || self.windows == 0 {
            (self.usual, self.windows, self.is_starting) = (latency, 1, true);
        } else if !window.was_full {
            self.windows = (self.windows + 1).min(USUAL);
            self.usual += (latency - self.usual) / f64::from(self.windows);
        } else {
            // What it does at best, it can do; at once while the limit is new, else slowly, because one quick window proves little.
            let weight = if self.is_starting { 1.0 } else { 1.0 / f64::from(USUAL) };
            self.usual += (latency - self.usual).min(0.0) * weight;
        }
        if self.is_idle(window) {
            return self.limit;
        }
        if self.is_starting {
            self.is_starting = latency <= STEADY * self.usual;
            return if self.is_starting { self.limit * 1.5 } else { self.limit };
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
        let Some(latency) = latency else { return self.limit };
        self.since_probe += 1.0;
        let may_forget = self.since_probe > PROBE_FACTOR * self.limit && !window.was_full || self.is_insensitive(latency);
        if self.least <= 0.0 || latency < self.least || may_forget || self.is_at_floor() {
            self.is_starting |= self.is_at_floor();
            (self.least, self.since_probe) = (latency, 0.0);
        }
        if self.is_idle(window) {
            return self.limit;
        }
        if self.is_starting {
            self.is_starting = latency <= STEADY * self.least;
            return if self.is_starting { self.limit * 1.5 } else { self.limit };
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
        if window.has_dropped { self.limit * 0.9 } else { self.limit }
    }

    fn is_at_floor(&self) -> bool {
        self.limit <= bounds(&self.config).0
    }

    fn is_idle(&self, window: &Window) -> bool {
        f64::from(window.most_in_flight) * 2.0 < self.limit
    }
}

fn bounds(config: &AdaptiveConfig) -> (f64, f64) {
    let least = config.min_limit.max(1);
    (least.into(), config.max_limit.max(least).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resilience::some_instant;

    const FULL: Start = Start { in_flight: 1_000, is_full: true };

    /// Numbers that are even in `0..1`, the same in each run.
    struct Dice(u64);

    impl Dice {
        fn throw(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            f64::from(u32::try_from(self.0 >> 32).expect("32 bits")) / f64::from(u32::MAX)
        }
    }

    /// How long a server works on a call.
    #[derive(Clone, Copy)]
    enum Work {
        /// 10 to 30 ms.
        Even,
        /// 100 ms in the mean, most less and a few much more.
        Skewed,
    }

    /// A backend with ten servers and a queue in front of them.
    struct Backend {
        free_at: [f64; 10],
        dice: Dice,
        work: Work,
        /// When calls begin to take three times as long, for good.
        slower_from: f64,
    }

    impl Backend {
        fn new(work: Work, slower_from: f64) -> Self {
            Self { free_at: [0.0; 10], dice: Dice(3), work, slower_from }
        }

        /// When a call that comes at `now` is answered.
        fn call(&mut self, now: f64) -> f64 {
            let next = self.free_at.iter_mut().min_by(|a, b| a.total_cmp(b)).expect("there is a server");
            let works = match self.work {
                Work::Even => 0.010 + 0.020 * self.dice.throw(),
                Work::Skewed => -0.100 * (1.0 - self.dice.throw()).max(1e-9).ln(),
            };
            *next = next.max(now) + works * if now < self.slower_from { 1.0 } else { 3.0 };
            *next
        }
    }

    struct Outcome {
        good: u32,
        p99: f64,
        limit: u32,
    }

    /// Offers calls for five minutes, as they come from many who know nothing of each other; what was answered within a second in the last four, and how long that took.
    fn offered(algorithm: Algorithm, work: Work, rate: f64, slower_from: f64) -> Outcome {
        let (start, mut backend) = (some_instant(), Backend::new(work, slower_from));
        let mut limit = AdaptiveLimit::new(AdaptiveConfig { algorithm, min_limit: 4, max_limit: 1_000 }, start);
        let mut running: Vec<(f64, f64, Start)> = Vec::new();
        let mut latencies = Vec::new();
        let (mut now, mut dice) = (0.0, Dice(7));
        while now < 300.0 {
            now -= (1.0 - dice.throw()).max(1e-9).ln() / rate;
            running.sort_by(|a, b| a.0.total_cmp(&b.0));
            while let Some((end, began, at_start)) = running.first().copied().filter(|(end, ..)| *end <= now) {
                running.remove(0);
                let took = end - began;
                // The caller gives up after a second; AIMD knows nothing else.
                limit.note(Duration::from_secs_f64(took), at_start, took > 1.0, start + Duration::from_secs_f64(end));
                if began > 60.0 && took <= 1.0 {
                    latencies.push(took);
                }
            }
            let in_flight = u32::try_from(running.len()).expect("few");
            if in_flight < limit.limit() {
                let at_start = Start { in_flight: in_flight + 1, is_full: in_flight + 1 >= limit.limit() };
                running.push((backend.call(now), now, at_start));
            }
        }
        latencies.sort_by(f64::total_cmp);
        let good = u32::try_from(latencies.len()).expect("few");
        Outcome { good, p99: latencies.get(latencies.len() * 99 / 100).copied().unwrap_or(f64::MAX), limit: limit.limit() }
    }

    #[test]
    fn at_twice_the_capacity_what_is_answered_stays_near_the_best_and_is_not_much_slower() {
        // Ten servers at 20 ms: 500 calls a second.
        for algorithm in [Algorithm::Gradient2, Algorithm::Vegas] {
            let best = offered(algorithm, Work::Even, 250.0, f64::MAX);
            let overload = offered(algorithm, Work::Even, 1_000.0, f64::MAX);
            assert!(f64::from(overload.good) >= 0.9 * 500.0 * 240.0, "{algorithm:?}: {} of {}", overload.good, best.good);
            assert!(overload.p99 <= 2.0 * best.p99, "{algorithm:?}: {} s, {} s at half the capacity; with a limit of {}", overload.p99, best.p99, overload.limit);
        }
        let aimd = offered(Algorithm::Aimd, Work::Even, 1_000.0, f64::MAX);
        assert!(f64::from(aimd.good) >= 0.9 * 500.0 * 240.0, "AIMD holds the time-out and no more: {}", aimd.good);
    }

    #[test]
    fn few_calls_of_very_different_length_do_not_mislead_it() {
        for algorithm in [Algorithm::Gradient2, Algorithm::Vegas] {
            let best = offered(algorithm, Work::Skewed, 50.0, f64::MAX);
            let overload = offered(algorithm, Work::Skewed, 200.0, f64::MAX);
            assert!(f64::from(overload.good) >= 0.9 * 100.0 * 240.0, "{algorithm:?}: {} with {}", overload.good, overload.limit);
            assert!(overload.p99 <= 2.0 * best.p99, "{algorithm:?}: {} s, {} s at half the capacity", overload.p99, best.p99);
        }
    }

    #[test]
    fn a_backend_that_becomes_slower_for_good_is_used_as_well_as_it_can_be() {
        for algorithm in [Algorithm::Gradient2, Algorithm::Vegas] {
            let (before, slower) = (offered(algorithm, Work::Even, 250.0, f64::MAX), offered(algorithm, Work::Even, 1_000.0, 30.0));
            assert!(f64::from(slower.good) >= 0.9 * 500.0 / 3.0 * 240.0, "{algorithm:?}: {} with {}", slower.good, slower.limit);
            assert!(slower.p99 <= 2.0 * 3.0 * before.p99, "{algorithm:?}: {} s, {} s before", slower.p99, before.p99);
        }
    }

    #[test]
    fn a_limit_that_is_not_used_is_not_raised() {
        for algorithm in [Algorithm::Gradient2, Algorithm::Vegas, Algorithm::Aimd] {
            let limit = offered(algorithm, Work::Even, 100.0, f64::MAX).limit;
            assert!(limit <= 40, "{algorithm:?}: two in flight, now and then ten, need no {limit}");
        }
    }

    #[test]
    fn bounds_hold_whatever_happens_and_drops_alone_lower_it() {
        let start = some_instant();
        for algorithm in [Algorithm::Gradient2, Algorithm::Vegas, Algorithm::Aimd] {
            let mut limit = AdaptiveLimit::new(AdaptiveConfig { algorithm, min_limit: 5, max_limit: 30 }, start);
            for second in 1..100 {
                limit.note(Duration::ZERO, FULL, true, start + Duration::from_secs(second));
            }
            assert_eq!(limit.limit(), 5, "{algorithm:?}");
            for call in 0..100_000_u32 {
                limit.note(Duration::from_millis(1), FULL, false, start + Duration::from_secs(100) + Duration::from_millis(call.into()));
            }
            assert_eq!(limit.limit(), 30, "{algorithm:?}");
            limit.reconfigure(AdaptiveConfig { algorithm, min_limit: 1, max_limit: 7 });
            assert_eq!(limit.limit(), 7);
        }
    }
}
