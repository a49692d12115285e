//! Adaptive limits in front of a simulated backend.

use super::*;
use crate::resilience::some_instant;

const FULL: Start = Start {
    in_flight: 1_000,
    is_full: true,
};

/// Numbers that are even in `0..1`, the same in each run.
struct Dice(u64);

impl Dice {
    fn throw(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
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
        Self {
            free_at: [0.0; 10],
            dice: Dice(3),
            work,
            slower_from,
        }
    }

    /// When a call that comes at `now` is answered.
    fn call(&mut self, now: f64) -> f64 {
        let next = self
            .free_at
            .iter_mut()
            .min_by(|a, b| a.total_cmp(b))
            .expect("there is a server");
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
    let mut limit = AdaptiveLimit::new(
        AdaptiveConfig {
            algorithm,
            min_limit: 4,
            max_limit: 1_000,
        },
        start,
    );
    let mut running: Vec<(f64, f64, Start)> = Vec::new();
    let mut latencies = Vec::new();
    let (mut now, mut dice) = (0.0, Dice(7));
    while now < 300.0 {
        now -= (1.0 - dice.throw()).max(1e-9).ln() / rate;
        running.sort_by(|a, b| a.0.total_cmp(&b.0));
        while let Some((end, began, at_start)) =
            running.first().copied().filter(|(end, ..)| *end <= now)
        {
            running.remove(0);
            let took = end - began;
            // The caller gives up after a second; AIMD knows nothing else.
            limit.note(
                Duration::from_secs_f64(took),
                at_start,
                took > 1.0,
                start + Duration::from_secs_f64(end),
            );
            if began > 60.0 && took <= 1.0 {
                latencies.push(took);
            }
        }
        let in_flight = u32::try_from(running.len()).expect("few");
        if in_flight < limit.limit() {
            let at_start = Start {
                in_flight: in_flight + 1,
                is_full: in_flight + 1 >= limit.limit(),
            };
            running.push((backend.call(now), now, at_start));
        }
    }
    latencies.sort_by(f64::total_cmp);
    let good = u32::try_from(latencies.len()).expect("few");
    Outcome {
        good,
        p99: latencies
            .get(latencies.len() * 99 / 100)
            .copied()
            .unwrap_or(f64::MAX),
        limit: limit.limit(),
    }
}

#[test]
fn at_twice_the_capacity_what_is_answered_stays_near_the_best_and_is_not_much_slower() {
    // Ten servers at 20 ms: 500 calls a second.
    for algorithm in [Algorithm::Gradient2, Algorithm::Vegas] {
        let best = offered(algorithm, Work::Even, 250.0, f64::MAX);
        let overload = offered(algorithm, Work::Even, 1_000.0, f64::MAX);
        assert!(
            f64::from(overload.good) >= 0.9 * 500.0 * 240.0,
            "{algorithm:?}: {} of {}",
            overload.good,
            best.good
        );
        assert!(
            overload.p99 <= 2.0 * best.p99,
            "{algorithm:?}: {} s, {} s at half the capacity; with a limit of {}",
            overload.p99,
            best.p99,
            overload.limit
        );
    }
    let aimd = offered(Algorithm::Aimd, Work::Even, 1_000.0, f64::MAX);
    assert!(
        f64::from(aimd.good) >= 0.9 * 500.0 * 240.0,
        "AIMD holds the time-out and no more: {}",
        aimd.good
    );
}

#[test]
fn few_calls_of_very_different_length_do_not_mislead_it() {
    for algorithm in [Algorithm::Gradient2, Algorithm::Vegas] {
        let best = offered(algorithm, Work::Skewed, 50.0, f64::MAX);
        let overload = offered(algorithm, Work::Skewed, 200.0, f64::MAX);
        assert!(
            f64::from(overload.good) >= 0.9 * 100.0 * 240.0,
            "{algorithm:?}: {} with {}",
            overload.good,
            overload.limit
        );
        assert!(
            overload.p99 <= 2.0 * best.p99,
            "{algorithm:?}: {} s, {} s at half the capacity",
            overload.p99,
            best.p99
        );
    }
}

#[test]
fn a_backend_that_becomes_slower_for_good_is_used_as_well_as_it_can_be() {
    for algorithm in [Algorithm::Gradient2, Algorithm::Vegas] {
        let (before, slower) = (
            offered(algorithm, Work::Even, 250.0, f64::MAX),
            offered(algorithm, Work::Even, 1_000.0, 30.0),
        );
        assert!(
            f64::from(slower.good) >= 0.9 * 500.0 / 3.0 * 240.0,
            "{algorithm:?}: {} with {}",
            slower.good,
            slower.limit
        );
        assert!(
            slower.p99 <= 2.0 * 3.0 * before.p99,
            "{algorithm:?}: {} s, {} s before",
            slower.p99,
            before.p99
        );
    }
}

#[test]
fn a_limit_that_is_not_used_is_not_raised() {
    for algorithm in [Algorithm::Gradient2, Algorithm::Vegas, Algorithm::Aimd] {
        let limit = offered(algorithm, Work::Even, 100.0, f64::MAX).limit;
        assert!(
            limit <= 40,
            "{algorithm:?}: two in flight, now and then ten, need no {limit}"
        );
    }
}

#[test]
fn bounds_hold_whatever_happens_and_drops_alone_lower_it() {
    let start = some_instant();
    for algorithm in [Algorithm::Gradient2, Algorithm::Vegas, Algorithm::Aimd] {
        let mut limit = AdaptiveLimit::new(
            AdaptiveConfig {
                algorithm,
                min_limit: 5,
                max_limit: 30,
            },
            start,
        );
        for second in 1..100 {
            limit.note(
                Duration::ZERO,
                FULL,
                true,
                start + Duration::from_secs(second),
            );
        }
        assert_eq!(limit.limit(), 5, "{algorithm:?}");
        for call in 0..100_000_u32 {
            limit.note(
                Duration::from_millis(1),
                FULL,
                false,
                start + Duration::from_secs(100) + Duration::from_millis(call.into()),
            );
        }
        assert_eq!(limit.limit(), 30, "{algorithm:?}");
        limit.reconfigure(AdaptiveConfig {
            algorithm,
            min_limit: 1,
            max_limit: 7,
        });
        assert_eq!(limit.limit(), 7);
    }
}
