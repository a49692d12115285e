use crate::resilience::gcra::*;

const MILLI: u64 = 1_000_000;
/// A bucket with 100 tokens per second and a burst of 5.
const BUCKET: GcraBucket = GcraBucket {
    interval_nanos: 10 * MILLI,
    burst: 5,
};

/// A naive token bucket that refills continuously. It counts nanoseconds of refill time, so
/// that sums are exact.
struct NaiveBucket {
    token_nanos: i64,
    updated_at_nanos: u64,
}

const TOKEN_NANOS: i64 = BUCKET.interval_nanos.cast_signed();

impl NaiveBucket {
    fn refill(&mut self, now_nanos: u64) -> i64 {
        self.token_nanos = (self.token_nanos + (now_nanos - self.updated_at_nanos).cast_signed())
            .min(i64::from(BUCKET.burst) * TOKEN_NANOS);
        self.updated_at_nanos = now_nanos;
        self.token_nanos
    }
}

#[test]
fn gcra_agrees_with_a_naive_token_bucket() {
    let (mut naive, mut arrival_nanos, mut now_nanos, mut seed) = (
        NaiveBucket {
            token_nanos: 5 * TOKEN_NANOS,
            updated_at_nanos: 0,
        },
        None,
        0,
        7_u64,
    );
    for step in 0..20_000 {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        now_nanos += (seed >> 40) % 20 * MILLI;
        let cost = u32::try_from((seed >> 33) % 4).expect("below 4");
        let max_wait_nanos = (seed >> 50) % 3 * 15 * MILLI;
        let parts = naive.refill(now_nanos);
        let wait = (i64::from(cost) * TOKEN_NANOS - parts)
            .max(0)
            .cast_unsigned();
        assert_eq!(
            i64::from(BUCKET.remaining(arrival_nanos, now_nanos)),
            parts.max(0) / TOKEN_NANOS,
            "step {step}"
        );
        let taken = BUCKET.try_take(arrival_nanos, cost, max_wait_nanos, now_nanos);
        assert_eq!(
            taken.map(|taken| taken.wait_nanos),
            if wait <= max_wait_nanos {
                Ok(wait)
            } else {
                Err(wait)
            },
            "step {step}"
        );
        if let Ok(taken) = taken {
            (arrival_nanos, naive.token_nanos) = (
                Some(taken.arrival_nanos),
                parts - i64::from(cost) * TOKEN_NANOS,
            );
        }
    }
}

#[test]
fn requests_that_may_wait_are_paced() {
    let mut arrival_nanos = None;
    let waits: Vec<_> = (0..8)
        .map(|_| {
            let taken = BUCKET.try_take(arrival_nanos, 1, 25 * MILLI, 0);
            arrival_nanos = taken.map_or(arrival_nanos, |taken| Some(taken.arrival_nanos));
            taken
                .map(|taken| taken.wait_nanos / MILLI)
                .map_err(|wait| wait / MILLI)
        })
        .collect();
    assert_eq!(
        waits,
        [Ok(0), Ok(0), Ok(0), Ok(0), Ok(0), Ok(10), Ok(20), Err(30)]
    );
}

#[test]
fn a_charge_makes_a_bounded_debt_that_is_repaid_over_time() {
    let arrival_nanos = Some(BUCKET.charge(None, 7, 0));
    assert_eq!(
        BUCKET.try_take(arrival_nanos, 0, 0, 0),
        Err(20 * MILLI),
        "two tokens below nothing"
    );
    assert_eq!(
        BUCKET
            .try_take(arrival_nanos, 0, 0, 20 * MILLI)
            .map(|taken| taken.wait_nanos),
        Ok(0)
    );
    assert_eq!(
        (
            BUCKET.remaining(arrival_nanos, 0),
            BUCKET.remaining(arrival_nanos, 50 * MILLI)
        ),
        (0, 3)
    );
    let absurd = BUCKET.charge(arrival_nanos, u64::MAX, 0);
    assert_eq!(
        BUCKET.try_take(Some(absurd), 0, 0, 0),
        Err(BUCKET.burst_nanos()),
        "no more than it holds"
    );
    assert_eq!(BUCKET.charge(Some(absurd), 1, 0), absurd);
}
