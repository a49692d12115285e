//! When a second request is worth making before the first has failed.
//!
//! The tail of a backend's latency is mostly bad luck: a pause, a busy neighbour, a lost packet. Asking once more when an answer is later
//! than nearly all are costs a few percent of load and removes the tail (Dean and Barroso, "The Tail at Scale", 2013). The delay is what
//! is written, or the 95th percentile of what the backend took, so that about one request in twenty is made twice.
//!
//! The percentile is that of the last minute, in two halves: the younger one fills, and when it is over it replaces the older one. An answer
//! that was not waited for, because another came first, counts with the time that it was waited for: else the slow would be forgotten and
//! the delay would creep down.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use super::latencies::Latencies;

/// Answers of which a percentile says something.
pub const ENOUGH: u32 = 50;

/// How late is late.
const SHARE: f64 = 0.95;

/// Half of the time that is looked back on.
const HALF: Duration = Duration::from_secs(30);

/// Below this a second request would only add load.
const SHORTEST: Duration = Duration::from_millis(1);

/// How many, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HedgeConfig {
    /// Requests at most, with the first.
    pub max_attempts: NonZeroU32,
    /// How long to wait before the next; none means as long as nearly all answers take.
    pub delay: Option<Duration>,
}

/// What a backend took lately.
#[derive(Debug, Clone)]
pub struct Hedge {
    config: HedgeConfig,
    younger: Latencies,
    older: Latencies,
    turned: Instant,
}

impl Hedge {
    /// One that has seen nothing.
    #[must_use]
    pub fn new(config: HedgeConfig, now: Instant) -> Self {
        Self {
            config,
            younger: Latencies::default(),
            older: Latencies::default(),
            turned: now,
        }
    }

    /// What it follows.
    #[must_use]
    pub fn config(&self) -> &HedgeConfig {
        &self.config
    }

    /// Follows other numbers; what was seen stays true.
    pub fn reconfigure(&mut self, config: HedgeConfig) {
        self.config = config;
    }

    /// Takes note of what an answer took.
    pub fn note(&mut self, took: Duration, now: Instant) {
        self.turn(now);
        self.younger.add(took);
    }

    /// How long to wait before the next request; none while too little is known.
    #[must_use]
    pub fn delay(&mut self, now: Instant) -> Option<Duration> {
        if self.config.delay.is_some() {
            return self.config.delay;
        }
        self.turn(now);
        let seen = self.younger.with(&self.older);
        (seen.total() >= ENOUGH).then(|| seen.percentile(SHARE).max(SHORTEST))
    }

    fn turn(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.turned);
        if since < HALF {
            return;
        }
        self.older = if since < HALF * 2 {
            std::mem::take(&mut self.younger)
        } else {
            Latencies::default()
        };
        self.younger = Latencies::default();
        self.turned = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resilience::some_instant;

    fn learning() -> Hedge {
        Hedge::new(
            HedgeConfig {
                max_attempts: NonZeroU32::MIN,
                delay: None,
            },
            some_instant(),
        )
    }

    #[test]
    fn a_delay_that_is_written_holds_from_the_first_request_on() {
        let delay = Some(Duration::from_millis(80));
        let mut hedge = Hedge::new(
            HedgeConfig {
                max_attempts: NonZeroU32::MIN,
                delay,
            },
            some_instant(),
        );
        hedge.note(Duration::from_secs(9), some_instant());
        assert_eq!(hedge.delay(some_instant()), delay);
    }

    #[test]
    fn the_delay_is_what_nineteen_of_twenty_answers_did_not_exceed() {
        let (mut hedge, now) = (learning(), some_instant());
        for answer in 1..=ENOUGH {
            assert_eq!(hedge.delay(now), None, "{answer}");
            hedge.note(
                if answer % 25 == 0 {
                    Duration::from_secs(1)
                } else {
                    Duration::from_millis(10)
                },
                now,
            );
        }
        let delay = hedge.delay(now).expect("enough are known");
        assert!(
            delay >= Duration::from_millis(10) && delay < Duration::from_millis(12),
            "{delay:?}"
        );
    }

    #[test]
    fn what_is_older_than_a_minute_is_forgotten() {
        let (mut hedge, start) = (learning(), some_instant());
        let fill = |hedge: &mut Hedge, millis, now| {
            (0..ENOUGH).for_each(|_| hedge.note(Duration::from_millis(millis), now))
        };
        fill(&mut hedge, 100, start);
        assert!(
            hedge.delay(start + HALF).expect("the older half counts") >= Duration::from_millis(100)
        );
        fill(&mut hedge, 10, start + HALF);
        fill(&mut hedge, 10, start + HALF * 2);
        assert!(
            hedge.delay(start + HALF * 2).expect("enough") < Duration::from_millis(12),
            "the first half is gone"
        );
        assert_eq!(
            hedge.delay(start + HALF * 5),
            None,
            "after a pause nothing is known"
        );
    }

    #[test]
    fn a_delay_is_never_shorter_than_what_is_worth_it() {
        let (mut hedge, now) = (learning(), some_instant());
        (0..ENOUGH).for_each(|_| hedge.note(Duration::from_micros(90), now));
        assert_eq!(hedge.delay(now), Some(SHORTEST));
    }
}
