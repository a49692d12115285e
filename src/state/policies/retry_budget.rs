//! Shared state of a retry budget, and the number of requests that retry.
//!
//! This module puts a lock around the pure [`BackendRetryBudget`]. It decides whether a backend
//! can take one more retry. It does not decide whether a failure is worth a retry.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use parking_lot::{Mutex, MutexGuard};

use crate::{
    policy::sections::retry_constraint::RetryBudgetSpec,
    resilience::retry_budget::{BackendRetryBudget, RetryBudgetConfig},
    state::table::{BuildContext, Reconfigure},
};

/// Retry budget that is shared by all requests under one name.
#[derive(Debug)]
pub struct RetryBudgetState {
    name: Arc<str>,
    /// State machine of the budget; the lock covers one call.
    machine: Mutex<BackendRetryBudget>,
    /// Number of requests that hold a [`RetryGuard`].
    in_flight: AtomicU32,
}

/// Reason why a retry is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryRejection {
    /// The retries of the interval have exhausted the budget.
    BudgetExhausted,
    /// The maximum number of requests retry already.
    TooManyInFlight,
}

impl RetryBudgetState {
    /// Creates a budget without recorded requests.
    #[must_use]
    pub fn new(name: Arc<str>, config: RetryBudgetConfig, now: Instant) -> Self {
        Self {
            name,
            machine: Mutex::new(BackendRetryBudget::new(config, now)),
            in_flight: AtomicU32::new(0),
        }
    }

    /// Returns the name that identifies this state across reloads.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Records a request, which adds its share to the budget.
    pub fn deposit(&self, now: Instant) {
        self.lock().deposit(now);
    }

    /// Withdraws one retry from the budget.
    ///
    /// `retry_guard` counts the request among those that retry, of which at most
    /// `max_in_flight` are permitted. The first call sets the guard, even if the budget then
    /// rejects the retry.
    ///
    /// # Errors
    /// Returns a [`RetryRejection`] if the budget is exhausted or too many requests retry at
    /// once.
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

    /// Returns the number of retries that the budget permits now.
    #[must_use]
    pub fn remaining(&self, now: Instant) -> u32 {
        self.lock().remaining(now)
    }

    /// Returns the configuration of the budget.
    #[must_use]
    pub fn config(&self) -> RetryBudgetConfig {
        *self.lock().config()
    }

    fn lock(&self) -> MutexGuard<'_, BackendRetryBudget> {
        self.machine.lock()
    }
}

/// Request that retries, counted until this guard is dropped.
#[derive(Debug)]
#[must_use = "a retry is in flight as long as its guard lives"]
pub struct RetryGuard(Arc<RetryBudgetState>);

impl Drop for RetryGuard {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Reconfigure for RetryBudgetState {
    type Spec = RetryBudgetSpec;

    fn create(name: &Arc<str>, spec: &Self::Spec, context: BuildContext<'_>) -> Self {
        Self::new(name.clone(), spec.config, context.now)
    }

    fn reconfigure(&self, spec: &Self::Spec, context: BuildContext<'_>) -> Option<Self> {
        // The counts of the old configuration cover other intervals.
        (self.config() != spec.config)
            .then(|| Self::new(self.name.clone(), spec.config, context.now))
    }
}
