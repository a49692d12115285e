//! A forecast of whether the other replicas can take over the load of this instance.
//!
//! The forecast assumes that a balancer spreads the load evenly. Each remaining replica then
//! receives an equal part of the load of this instance. The capacity of a replica is its
//! concurrency limit, whether configured or adaptive. The maximum rate follows from the current
//! latency (Little's law: in flight = rate * latency).
//!
//! The module does not measure the load or count the replicas. It also does not stop a drain.

/// Load of this instance over the last seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ObservedLoad {
    /// Maximum number of requests in flight at the same time.
    pub peak_in_flight: u32,
    /// Mean number of requests in flight.
    pub mean_in_flight: f64,
    /// Number of requests per second.
    pub requests_per_second: f64,
    /// Sum of all concurrency limits, or `None` if some requests have no limit.
    pub limit: Option<u32>,
    /// Highest utilization of a single limit; above 1 after an adaptive limit has fallen.
    pub max_utilization: f64,
}

/// Whether the remaining replicas can carry the load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CapacityVerdict {
    /// The number of replicas is unknown.
    UnknownReplicas,
    /// There is no other replica to carry the load.
    NoOtherReplica,
    /// No concurrency limit determines the capacity of a replica.
    UnknownLimit,
    /// The other replicas can carry the load.
    Sufficient,
    /// The load exceeds the capacity of the other replicas.
    Insufficient,
}

impl CapacityVerdict {
    /// Returns whether the instance can stop without an overload of the others.
    #[must_use]
    pub fn is_sufficient(self) -> bool {
        self == Self::Sufficient
    }
}

/// Expected load of the other replicas without this instance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CapacityForecast {
    /// Number of remaining replicas, or `None` if it is unknown.
    pub remaining_replicas: Option<u32>,
    /// Remaining part of the capacity, in `0.0..=1.0`; 0 if the number of replicas is unknown.
    pub remaining_capacity: f64,
    /// Expected peak of requests in flight at each remaining replica; infinite if there is
    /// none.
    pub in_flight_per_replica: f64,
    /// Expected requests per second at each remaining replica; infinite if there is none.
    pub requests_per_second_per_replica: f64,
    /// Maximum requests per second of a replica, or `None` without a limit or without load.
    pub max_requests_per_second_per_replica: Option<f64>,
    /// Whether the remaining replicas can carry the load.
    pub verdict: CapacityVerdict,
}

/// Returns the expected load of the other replicas if this instance stops.
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
    // Zero load stays zero without a replica, where 0 times infinity would not be a number.
    let per_replica = |here: f64| if here > 0.0 { here * growth } else { 0.0 };
    let in_flight_each = per_replica(observed.peak_in_flight.into());
    let verdict = match (remaining_replicas, observed.limit) {
        (None, _) => CapacityVerdict::UnknownReplicas,
        (Some(0), _) => CapacityVerdict::NoOtherReplica,
        (Some(_), None) => CapacityVerdict::UnknownLimit,
        // The fullest limit decides, because other limits cannot take over its requests.
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
