//! Whether the others can carry the load when this instance leaves.
//!
//! It is assumed that the load is spread evenly over the replicas, which is what a balancer is for: each of those that stay then gets
//! its part of what this one has now. What a replica can carry is what its concurrency limit lets in, be it written or learned; the
//! rate that belongs to it follows from how long a request takes now (Little's law: in flight = rate x time).

/// What an instance has to do, over the last seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ObservedLoad {
    /// The most requests in flight at once.
    pub peak_in_flight: u32,
    /// Requests in flight on average.
    pub mean_in_flight: f64,
    /// Requests in a second.
    pub requests_per_second: f64,
    /// Requests that may be in flight at once under all limits together, if every way in has one.
    pub limit: Option<u32>,
    /// The part of any single limit that was taken at its fullest; above 1 after a limit has fallen.
    pub max_utilization: f64,
}

/// What is to be expected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CapacityVerdict {
    /// Nobody knows how many replicas there are.
    UnknownReplicas,
    /// No other replica is there.
    NoOtherReplica,
    /// No limit says what a replica can carry.
    UnknownLimit,
    /// The others can carry it.
    Sufficient,
    /// They cannot.
    Insufficient,
}

impl CapacityVerdict {
    /// Whether it is safe to leave.
    #[must_use]
    pub fn is_sufficient(self) -> bool {
        self == Self::Sufficient
    }
}

/// How it would be without this instance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CapacityForecast {
    /// Replicas that stay, if that is known.
    pub remaining_replicas: Option<u32>,
    /// The part of the capacity that stays, in `0.0..=1.0`.
    pub remaining_capacity: f64,
    /// Requests in flight at each of the others at its peak.
    pub in_flight_per_replica: f64,
    /// Requests a second at each of the others.
    pub requests_per_second_per_replica: f64,
    /// Requests a second that a replica can carry, if that is known.
    pub max_requests_per_second_per_replica: Option<f64>,
    /// Whether the others can carry it.
    pub verdict: CapacityVerdict,
}

/// What is to be expected when this instance leaves and so many others stay.
#[must_use]
pub fn forecast_without_this_instance(
    observed: &ObservedLoad,
    remaining_replicas: Option<u32>,
) -> CapacityForecast {
    let others = remaining_replicas.map_or(0.0, f64::from);
    let growth = if others > 0.0 {
        (others + 1.0) / others
    } else {
        f64::INFINITY
    };
    // Nothing times anything is nothing, also when nobody is left to do it.
    let per_replica = |here: f64| if here > 0.0 { here * growth } else { 0.0 };
    let in_flight_each = per_replica(observed.peak_in_flight.into());
    let verdict = match (remaining_replicas, observed.limit) {
        (None, _) => CapacityVerdict::UnknownReplicas,
        (Some(0), _) => CapacityVerdict::NoOtherReplica,
        (Some(_), None) => CapacityVerdict::UnknownLimit,
        // One limit that is full does not care about others that are empty.
        (Some(_), Some(_)) if per_replica(observed.max_utilization) <= 1.0 => {
            CapacityVerdict::Sufficient
        }
        (Some(_), Some(_)) => CapacityVerdict::Insufficient,
    };
    let rate_limit_each = observed
        .limit
        .filter(|_| observed.mean_in_flight > 0.0)
        .map(|limit| f64::from(limit) * observed.requests_per_second / observed.mean_in_flight);
    CapacityForecast {
        remaining_replicas,
        remaining_capacity: others / (others + 1.0),
        in_flight_per_replica: in_flight_each,
        requests_per_second_per_replica: per_replica(observed.requests_per_second),
        max_requests_per_second_per_replica: rate_limit_each,
        verdict,
    }
}

#[cfg(test)]
mod tests;
