//! Tests of adaptive limits in front of a simulated backend.

use crate::resilience::{adaptive::*, some_instant};

const START_AT_LIMIT: CallStart = CallStart {
    in_flight: 1_000,
    is_at_limit: true,
};

/// A generator of uniform numbers in `0..1`, with the same sequence in each run.
struct SimulationRandom(u64);

impl SimulationRandom {
    fn next_uniform(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        f64::from(u32::try_from(self.0 >> 32).expect("32 bits")) / f64::from(u32::MAX)
    }
}

/// Distribution of the time that a worker of the backend spends on a call.
#[derive(Clone, Copy)]
enum ServiceTimes {
    /// Uniform between 10 ms and 30 ms.
    Uniform,
    /// Exponential with a mean of 100 ms: most are shorter and a few are much longer.
    Exponential,
}

/// A backend with ten workers and one queue in front of them.
struct SimulatedBackend {
    free_at: [f64; 10],
    random: SimulationRandom,
    service_times: ServiceTimes,
    /// Second of the simulation from which every call takes three times as long.
    slows_down_at: f64,
}

impl SimulatedBackend {
    fn new(work: ServiceTimes, slower_from: f64) -> Self {
        Self {
            free_at: [0.0; 10],
            random: SimulationRandom(3),
            service_times: work,
            slows_down_at: slower_from,
        }
    }

    /// Returns the time at which a call that arrives at `now` completes, in seconds.
    fn completion_time(&mut self, now: f64) -> f64 {
        let next = self
            .free_at
            .iter_mut()
            .min_by(|a, b| a.total_cmp(b))
            .expect("there is a server");
        let service_seconds = match self.service_times {
            ServiceTimes::Uniform => 0.010 + 0.020 * self.random.next_uniform(),
            ServiceTimes::Exponential => -0.100 * (1.0 - self.random.next_uniform()).max(1e-9).ln(),
        };
        *next = next.max(now) + service_seconds * if now < self.slows_down_at { 1.0 } else { 3.0 };
        *next
    }
}

struct SimulationResult {
    completed: u32,
    p99_seconds: f64,
    limit: u32,
}

/// Simulates five minutes of independent arrivals at `rate` calls per second.
///
/// The result covers the calls that started after the first minute and completed within one
/// second.
fn simulate(
    algorithm: LimitAlgorithm,
    work: ServiceTimes,
    rate: f64,
    slower_from: f64,
) -> SimulationResult {
    let (start, mut backend) = (some_instant(), SimulatedBackend::new(work, slower_from));
    let mut limit = AdaptiveLimit::new(
        AdaptiveConfig {
            algorithm,
            min_limit: 4,
            max_limit: 1_000,
        },
        start,
    );
    let mut running: Vec<(f64, f64, CallStart)> = Vec::new();
    let mut latencies = Vec::new();
    let (mut now, mut random) = (0.0, SimulationRandom(7));
    while now < 300.0 {
        now -= (1.0 - random.next_uniform()).max(1e-9).ln() / rate;
        running.sort_by(|a, b| a.0.total_cmp(&b.0));
        while let Some((end, began, at_start)) =
            running.first().copied().filter(|(end, ..)| *end <= now)
        {
            running.remove(0);
            let took = end - began;
            // The client times out after one second. This is the only signal that AIMD uses.
            limit.record_sample(
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
            let at_start = CallStart {
                in_flight: in_flight + 1,
                is_at_limit: in_flight + 1 >= limit.limit(),
            };
            running.push((backend.completion_time(now), now, at_start));
        }
    }
    latencies.sort_by(f64::total_cmp);
    let good = u32::try_from(latencies.len()).expect("few");
    SimulationResult {
        completed: good,
        p99_seconds: latencies
            .get(latencies.len() * 99 / 100)
            .copied()
            .unwrap_or(f64::MAX),
        limit: limit.limit(),
    }
}

#[test]
fn at_twice_the_capacity_goodput_stays_near_the_maximum_and_p99_at_most_doubles() {
    // Ten workers at a mean of 20 ms complete 500 calls per second.
    for algorithm in [LimitAlgorithm::Gradient2, LimitAlgorithm::Vegas] {
        let best = simulate(algorithm, ServiceTimes::Uniform, 250.0, f64::MAX);
        let overload = simulate(algorithm, ServiceTimes::Uniform, 1_000.0, f64::MAX);
        assert!(
            f64::from(overload.completed) >= 0.9 * 500.0 * 240.0,
            "{algorithm:?}: {} of {}",
            overload.completed,
            best.completed
        );
        assert!(
            overload.p99_seconds <= 2.0 * best.p99_seconds,
            "{algorithm:?}: {} s, {} s at half the capacity; with a limit of {}",
            overload.p99_seconds,
            best.p99_seconds,
            overload.limit
        );
    }
    let aimd = simulate(
        LimitAlgorithm::Aimd,
        ServiceTimes::Uniform,
        1_000.0,
        f64::MAX,
    );
    assert!(
        f64::from(aimd.completed) >= 0.9 * 500.0 * 240.0,
        "AIMD holds the time-out and no more: {}",
        aimd.completed
    );
}

#[test]
fn skewed_service_times_do_not_mislead_the_limit() {
    for algorithm in [LimitAlgorithm::Gradient2, LimitAlgorithm::Vegas] {
        let best = simulate(algorithm, ServiceTimes::Exponential, 50.0, f64::MAX);
        let overload = simulate(algorithm, ServiceTimes::Exponential, 200.0, f64::MAX);
        assert!(
            f64::from(overload.completed) >= 0.9 * 100.0 * 240.0,
            "{algorithm:?}: {} with {}",
            overload.completed,
            overload.limit
        );
        assert!(
            overload.p99_seconds <= 2.0 * best.p99_seconds,
            "{algorithm:?}: {} s, {} s at half the capacity",
            overload.p99_seconds,
            best.p99_seconds
        );
    }
}

#[test]
fn a_permanently_slower_backend_is_still_used_near_its_capacity() {
    for algorithm in [LimitAlgorithm::Gradient2, LimitAlgorithm::Vegas] {
        let (before, slower) = (
            simulate(algorithm, ServiceTimes::Uniform, 250.0, f64::MAX),
            simulate(algorithm, ServiceTimes::Uniform, 1_000.0, 30.0),
        );
        assert!(
            f64::from(slower.completed) >= 0.9 * 500.0 / 3.0 * 240.0,
            "{algorithm:?}: {} with {}",
            slower.completed,
            slower.limit
        );
        assert!(
            slower.p99_seconds <= 2.0 * 3.0 * before.p99_seconds,
            "{algorithm:?}: {} s, {} s before",
            slower.p99_seconds,
            before.p99_seconds
        );
    }
}

#[test]
fn an_underused_limit_is_not_raised() {
    for algorithm in [
        LimitAlgorithm::Gradient2,
        LimitAlgorithm::Vegas,
        LimitAlgorithm::Aimd,
    ] {
        let limit = simulate(algorithm, ServiceTimes::Uniform, 100.0, f64::MAX).limit;
        assert!(
            limit <= 40,
            "{algorithm:?}: two in flight, now and then ten, need no {limit}"
        );
    }
}

#[test]
fn the_limit_stays_within_its_bounds_and_drops_lower_it_to_the_minimum() {
    let start = some_instant();
    for algorithm in [
        LimitAlgorithm::Gradient2,
        LimitAlgorithm::Vegas,
        LimitAlgorithm::Aimd,
    ] {
        let mut limit = AdaptiveLimit::new(
            AdaptiveConfig {
                algorithm,
                min_limit: 5,
                max_limit: 30,
            },
            start,
        );
        for second in 1..100 {
            limit.record_sample(
                Duration::ZERO,
                START_AT_LIMIT,
                true,
                start + Duration::from_secs(second),
            );
        }
        assert_eq!(limit.limit(), 5, "{algorithm:?}");
        for call in 0..100_000_u32 {
            limit.record_sample(
                Duration::from_millis(1),
                START_AT_LIMIT,
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
