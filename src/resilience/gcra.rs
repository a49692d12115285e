//! Token buckets as a single number (GCRA).
//!
//! The state of a bucket is its *theoretical arrival time*: the time at which it is full again.
//! The algorithm is GCRA (ITU-T I.371). Sentinel's pacing queue is the same with a burst of
//! one. Taking tokens advances this time by the time in which they refill. A bucket is empty
//! when its arrival time is one whole burst ahead of now.
//!
//! The `governor` crate implements plain buckets. This module adds three operations:
//!
//! - requests may wait for their tokens,
//! - tokens may be charged after the response,
//! - the remaining tokens can be read.
//!
//! The module stores no state and reads no clock. All times are nanoseconds since one epoch
//! that the caller chooses.

/// Rate and burst of a token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GcraBucket {
    /// Time in which one token refills, in nanoseconds.
    pub interval_nanos: u64,
    /// Capacity of the bucket, in tokens.
    pub burst: u32,
}

/// Tokens that were taken from a bucket, possibly in advance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TakenTokens {
    /// New arrival time of the bucket, in nanoseconds since the epoch.
    pub arrival_nanos: u64,
    /// Time until the tokens are available, in nanoseconds; 0 if they are available now.
    pub wait_nanos: u64,
}

impl GcraBucket {
    /// Returns the time in which an empty bucket refills completely, in nanoseconds.
    #[must_use]
    pub fn burst_nanos(&self) -> u64 {
        self.interval_nanos.saturating_mul(self.burst.into())
    }

    /// Takes `cost` tokens if they are available within `max_wait_nanos`.
    ///
    /// A bucket without an arrival time is full.
    ///
    /// # Errors
    /// Returns the time until the tokens are available, in nanoseconds, if it exceeds
    /// `max_wait_nanos`.
    pub fn try_take(
        &self,
        arrival_nanos: Option<u64>,
        cost: u32,
        max_wait_nanos: u64,
        now_nanos: u64,
    ) -> Result<TakenTokens, u64> {
        let arrival_nanos = arrival_nanos
            .unwrap_or_default()
            .max(now_nanos)
            .saturating_add(self.interval_nanos.saturating_mul(cost.into()));
        let wait = arrival_nanos
            .saturating_sub(now_nanos)
            .saturating_sub(self.burst_nanos());
        if wait <= max_wait_nanos {
            Ok(TakenTokens {
                arrival_nanos,
                wait_nanos: wait,
            })
        } else {
            Err(wait)
        }
    }

    /// Charges `tokens` that were already used and returns the new arrival time.
    ///
    /// The resulting debt is at most one burst, whatever the number of tokens.
    #[must_use]
    pub fn charge(&self, arrival_nanos: Option<u64>, tokens: u64, now_nanos: u64) -> u64 {
        let arrival_nanos = arrival_nanos.unwrap_or_default().max(now_nanos);
        let most = now_nanos.saturating_add(self.burst_nanos().saturating_mul(2));
        arrival_nanos
            .saturating_add(self.interval_nanos.saturating_mul(tokens))
            .min(most.max(arrival_nanos))
    }

    /// Returns the number of whole tokens that are available now.
    #[must_use]
    pub fn remaining(&self, arrival_nanos: Option<u64>, now_nanos: u64) -> u32 {
        let missing = arrival_nanos.unwrap_or_default().saturating_sub(now_nanos);
        u32::try_from(self.burst_nanos().saturating_sub(missing) / self.interval_nanos.max(1))
            .unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests;
