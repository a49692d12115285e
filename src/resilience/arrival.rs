//! Token buckets as one number: what a bucket needs besides yes and no.
//!
//! A bucket is its *theoretical arrival time*: when it will be full again (GCRA; ITU-T I.371, and Sentinel's pacing queue, which is
//! the same with a burst of one). Taking tokens moves it on by their time; a bucket is empty when it lies a whole burst ahead of
//! now. Plain buckets are governor's; these operations are for requests that may wait for their tokens, for a bill that comes
//! with the answer, and for telling how much is left. All times are nanoseconds since one epoch.

/// A bucket's times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// In which one token comes back.
    pub interval: u64,
    /// Tokens that it holds.
    pub burst: u32,
}

/// Tokens that were taken, perhaps in advance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// The bucket's new time.
    pub arrival: u64,
    /// How long to wait until they are there.
    pub wait: u64,
}

impl Bucket {
    /// The time in which an empty bucket is full again.
    #[must_use]
    pub fn burst_time(&self) -> u64 {
        self.interval.saturating_mul(self.burst.into())
    }

    /// Takes `cost` tokens, if they are there now or within `max_wait`.
    ///
    /// # Errors
    /// How long it takes until they could be had without a wait.
    pub fn take(
        &self,
        arrival: Option<u64>,
        cost: u32,
        max_wait: u64,
        now: u64,
    ) -> Result<Taken, u64> {
        let arrival = arrival
            .unwrap_or_default()
            .max(now)
            .saturating_add(self.interval.saturating_mul(cost.into()));
        let wait = arrival
            .saturating_sub(now)
            .saturating_sub(self.burst_time());
        if wait <= max_wait {
            Ok(Taken { arrival, wait })
        } else {
            Err(wait)
        }
    }

    /// Charges `tokens` that were used already; the new time. A debt is at most what the bucket holds, whatever the bill says.
    #[must_use]
    pub fn charge(&self, arrival: Option<u64>, tokens: u64, now: u64) -> u64 {
        let arrival = arrival.unwrap_or_default().max(now);
        let most = now.saturating_add(self.burst_time().saturating_mul(2));
        arrival
            .saturating_add(self.interval.saturating_mul(tokens))
            .min(most.max(arrival))
    }

    /// The whole tokens that are there.
    #[must_use]
    pub fn left(&self, arrival: Option<u64>, now: u64) -> u32 {
        let missing = arrival.unwrap_or_default().saturating_sub(now);
        u32::try_from(self.burst_time().saturating_sub(missing) / self.interval.max(1))
            .unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: u64 = 1_000_000;
    /// 100 a second, 5 at once.
    const BUCKET: Bucket = Bucket {
        interval: 10 * MILLI,
        burst: 5,
    };

    /// A bucket of tokens that trickle, as one would write it down; in parts of a token, so that sums are exact.
    struct Naive {
        parts: i64,
        at: u64,
    }

    const TOKEN: i64 = BUCKET.interval.cast_signed();

    impl Naive {
        fn left(&mut self, now: u64) -> i64 {
            self.parts =
                (self.parts + (now - self.at).cast_signed()).min(i64::from(BUCKET.burst) * TOKEN);
            self.at = now;
            self.parts
        }
    }

    #[test]
    fn it_agrees_with_a_bucket_of_tokens() {
        let (mut naive, mut arrival, mut now, mut dice) = (
            Naive {
                parts: 5 * TOKEN,
                at: 0,
            },
            None,
            0,
            7_u64,
        );
        for step in 0..20_000 {
            dice = dice
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            now += (dice >> 40) % 20 * MILLI;
            let cost = u32::try_from((dice >> 33) % 4).expect("below 4");
            let max_wait = (dice >> 50) % 3 * 15 * MILLI;
            let parts = naive.left(now);
            let wait = (i64::from(cost) * TOKEN - parts).max(0).cast_unsigned();
            assert_eq!(
                i64::from(BUCKET.left(arrival, now)),
                parts.max(0) / TOKEN,
                "step {step}"
            );
            let taken = BUCKET.take(arrival, cost, max_wait, now);
            assert_eq!(
                taken.map(|taken| taken.wait),
                if wait <= max_wait {
                    Ok(wait)
                } else {
                    Err(wait)
                },
                "step {step}"
            );
            if let Ok(taken) = taken {
                (arrival, naive.parts) = (Some(taken.arrival), parts - i64::from(cost) * TOKEN);
            }
        }
    }

    #[test]
    fn who_may_wait_is_paced() {
        let mut arrival = None;
        let waits: Vec<_> = (0..8)
            .map(|_| {
                let taken = BUCKET.take(arrival, 1, 25 * MILLI, 0);
                arrival = taken.map_or(arrival, |taken| Some(taken.arrival));
                taken
                    .map(|taken| taken.wait / MILLI)
                    .map_err(|wait| wait / MILLI)
            })
            .collect();
        assert_eq!(
            waits,
            [Ok(0), Ok(0), Ok(0), Ok(0), Ok(0), Ok(10), Ok(20), Err(30)]
        );
    }

    #[test]
    fn a_bill_makes_a_debt_that_is_bounded_and_paid_with_time() {
        let arrival = Some(BUCKET.charge(None, 7, 0));
        assert_eq!(
            BUCKET.take(arrival, 0, 0, 0),
            Err(20 * MILLI),
            "two tokens below nothing"
        );
        assert_eq!(
            BUCKET
                .take(arrival, 0, 0, 20 * MILLI)
                .map(|taken| taken.wait),
            Ok(0)
        );
        assert_eq!(
            (BUCKET.left(arrival, 0), BUCKET.left(arrival, 50 * MILLI)),
            (0, 3)
        );
        let absurd = BUCKET.charge(arrival, u64::MAX, 0);
        assert_eq!(
            BUCKET.take(Some(absurd), 0, 0, 0),
            Err(BUCKET.burst_time()),
            "no more than it holds"
        );
        assert_eq!(BUCKET.charge(Some(absurd), 1, 0), absurd);
    }
}
