//! Token buckets as one number: what a bucket needs besides yes and no.
//!
//! A bucket is its *theoretical arrival time*: when it will be full again (GCRA; ITU-T I.371, and Sentinel's pacing queue, which is
//! the same with a burst of one). Taking tokens moves it on by their time; a bucket is empty when it lies a whole burst ahead of
//! now. Plain buckets are governor's; these operations are for requests that may wait for their tokens, for a bill that comes
//! with the answer, and for telling how much is left. All times are nanoseconds since one epoch.

/// A bucket's times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GcraBucket {
    /// In which one token comes back.
    pub interval_nanos: u64,
    /// Tokens that it holds.
    pub burst: u32,
}

/// Tokens that were taken, perhaps in advance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TakenTokens {
    /// The bucket's new time.
    pub arrival_nanos: u64,
    /// How long to wait until they are there.
    pub wait_nanos: u64,
}

impl GcraBucket {
    /// The time in which an empty bucket is full again.
    #[must_use]
    pub fn burst_nanos(&self) -> u64 {
        self.interval_nanos.saturating_mul(self.burst.into())
    }

    /// Takes `cost` tokens, if they are there now or within `max_wait`.
    ///
    /// # Errors
    /// How long it takes until they could be had without a wait.
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

    /// Charges `tokens` that were used already; the new time. A debt is at most what the bucket holds, whatever the bill says.
    #[must_use]
    pub fn charge(&self, arrival_nanos: Option<u64>, tokens: u64, now_nanos: u64) -> u64 {
        let arrival_nanos = arrival_nanos.unwrap_or_default().max(now_nanos);
        let most = now_nanos.saturating_add(self.burst_nanos().saturating_mul(2));
        arrival_nanos
            .saturating_add(self.interval_nanos.saturating_mul(tokens))
            .min(most.max(arrival_nanos))
    }

    /// The whole tokens that are there.
    #[must_use]
    pub fn remaining(&self, arrival_nanos: Option<u64>, now_nanos: u64) -> u32 {
        let missing = arrival_nanos.unwrap_or_default().saturating_sub(now_nanos);
        u32::try_from(self.burst_nanos().saturating_sub(missing) / self.interval_nanos.max(1))
            .unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests;
