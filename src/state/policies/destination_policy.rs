//! What the state of a policy between a route and a backend provides.

use std::{
    fmt::Debug,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    policy::sections::PolicySpec, resilience::breaker::CallOutcome, state::table::Reconfigure,
};

/// State of a policy between a route and a backend.
pub trait DestinationPolicyState: Reconfigure {
    /// Returns the name and the specification of the state; `None` if the policy has none.
    fn select_spec(policy: &PolicySpec) -> Option<(&Arc<str>, &Self::Spec)>;

    /// Returns the state as an observer of attempts, if it is one.
    fn into_observer(self: Arc<Self>) -> Option<Arc<dyn AttemptObserver>> {
        None
    }
}

/// Observer of the results of attempts that needs no permit for each attempt.
pub trait AttemptObserver: Debug + Send + Sync {
    /// Records the result of one attempt. `latency` is the time to the response head, without
    /// the time that the client took to send; `None` if there was no response.
    fn record_attempt_result(&self, outcome: CallOutcome, latency: Option<Duration>, now: Instant);
}
