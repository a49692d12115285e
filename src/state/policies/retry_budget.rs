//! A retry budget that is shared, and the count of retries in flight.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use crate::resilience::retry_budget::{BackendRetryBudget, RetryBudgetConfig};

/// The budget of a backend by its name.
#[derive(Debug)]
pub struct RetryBudgetState {
    name: Arc<str>,
    /// Guards one call of the machine.
    machine: Mutex<BackendRetryBudget>,
    in_flight: AtomicU32,
}

/// Why there is no retry to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryRejection {
    /// The budget is spent.
    BudgetExhausted,
    /// As many retries as may be are in flight.
    TooManyInFlight,
}

impl RetryBudgetState {
    /// Makes a budget that has seen nothing.
    #[must_use]
    pub fn new(name: Arc<str>, config: RetryBudgetConfig, now: Instant) -> Self {
        Self {
            name,
            machine: Mutex::new(BackendRetryBudget::new(config, now)),
            in_flight: AtomicU32::new(0),
        }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Counts a request.
    pub fn deposit(&self, now: Instant) {
        self.lock().deposit(now);
    }

    /// Takes one retry out of the budget, if there is one and no more than `max_in_flight` requests are retrying. `held` is the
    /// request's place among those, taken at its first retry.
    ///
    /// # Errors
    /// [`NoRetry`] says what there is none of.
    pub fn try_withdraw(
        self: &Arc<Self>,
        retry_guard: &mut Option<RetryGuard>,
        max_in_flight: u32,
        now: Instant,
    ) -> Result<(), RetryRejection> {
        if retry_guard.is_none() {
            *retry_guard = Some(self.try_start_retrying(max_in_flight)?);
        }
        if self.lock().try_withdraw(now) {
            Ok(())
        } else {
            Err(RetryRejection::BudgetExhausted)
        }
    }

    fn try_start_retrying(
        self: &Arc<Self>,
        max_in_flight: u32,
    ) -> Result<RetryGuard, RetryRejection> {
        let admitted = self
            .in_flight
            .try_update(Ordering::AcqRel, Ordering::Acquire, |count| {
                (count < max_in_flight).then_some(count + 1)
            });
        admitted
            .map(|_| RetryGuard(self.clone()))
            .map_err(|_| RetryRejection::TooManyInFlight)
    }

    /// Retries that could be made at once now.
    #[must_use]
    pub fn remaining(&self, now: Instant) -> u32 {
        self.lock().remaining(now)
    }

    /// What the budget follows.
    #[must_use]
    pub fn config(&self) -> RetryBudgetConfig {
        *self.lock().config()
    }

    fn lock(&self) -> MutexGuard<'_, BackendRetryBudget> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that is retrying.
#[derive(Debug)]
#[must_use = "a retry is in flight as long as its guard lives"]
pub struct RetryGuard(Arc<RetryBudgetState>);

impl Drop for RetryGuard {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}
