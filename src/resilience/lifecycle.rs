//! How an instance leaves: announced, and only when nothing is left to do.
//!
//! Callers go on sending for a while after an instance is marked as unready, because the news has to travel. So it first
//! announces itself as draining and serves as before for `delay`; then it stops accepting; then it waits until nothing is in
//! flight and nothing came for `quiet_period`; and it leaves at `timeout` in any case. Leaving early when it is quiet, and
//! late when it is not, is what a fixed sleep gets wrong in both directions (istio/istio#36660, cloudflare/pingora#505).
//!
//! | phase | ready | accepts | leaves by |
//! | --- | --- | --- | --- |
//! | announcing | no | yes | `delay` |
//! | waiting | no | no | quiet, or `timeout` |
//! | done | no | no | - |

use std::time::{Duration, Instant};

/// The times of a drain; all of them count from its beginning, except the quiet period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainConfig {
    /// How long to go on accepting.
    pub delay: Duration,
    /// How long nothing must be in flight before leaving.
    pub quiet_period: Duration,
    /// When to leave in any case.
    pub timeout: Duration,
}

impl Default for DrainConfig {
    /// 5 s, 1 s and 25 s: within the 30 s that Kubernetes gives a pod.
    fn default() -> Self {
        Self { delay: Duration::from_secs(5), quiet_period: Duration::from_secs(1), timeout: Duration::from_secs(25) }
    }
}

/// Where a drain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainPhase {
    /// Unready, and serving as before.
    Announcing,
    /// Not accepting; waiting for what is in flight.
    Waiting,
    /// To leave now.
    Done {
        /// Whether nothing was left in flight.
        is_clean: bool,
    },
}

/// One drain, from its beginning.
#[derive(Debug, Clone, Copy)]
pub struct Drain {
    config: DrainConfig,
    began: Instant,
}

impl Drain {
    /// Begins.
    #[must_use]
    pub fn begin(config: DrainConfig, now: Instant) -> Self {
        Self { config, began: now }
    }

    /// Where the drain is, with so many requests in flight and the last one ended (or begun) at `last_activity`.
    #[must_use]
    pub fn phase(&self, in_flight: usize, last_activity: Option<Instant>, now: Instant) -> DrainPhase {
        if now >= self.began + self.config.timeout {
            return DrainPhase::Done { is_clean: in_flight == 0 };
        }
        if now < self.began + self.config.delay {
            return DrainPhase::Announcing;
        }
        if in_flight == 0 && now >= self.quiet_at(last_activity) {
            return DrainPhase::Done { is_clean: true };
        }
        DrainPhase::Waiting
    }

    /// When the phase can next change, if nothing begins or ends before.
    #[must_use]
    pub fn next_deadline(&self, in_flight: usize, last_activity: Option<Instant>, now: Instant) -> Instant {
        let timeout = self.began + self.config.timeout;
        let delayed = self.began + self.config.delay;
        if now < delayed {
            return delayed.min(timeout);
        }
        if in_flight == 0 { self.quiet_at(last_activity).min(timeout) } else { timeout }
    }

    /// When it began.
    #[must_use]
    pub fn began(&self) -> Instant {
        self.began
    }

    /// With no activity at all there is nothing to be quiet after.
    fn quiet_at(&self, last_activity: Option<Instant>) -> Instant {
        last_activity.map_or(self.began, |at| at + self.config.quiet_period)
    }
}

#[cfg(test)]
mod tests;
