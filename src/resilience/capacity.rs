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
mod tests {
    use super::*;

    fn observed_load(peak: u32, limit: Option<u32>) -> ObservedLoad {
        let fullest = limit.map_or(0.0, |limit| f64::from(peak) / f64::from(limit));
        ObservedLoad {
            peak_in_flight: peak,
            mean_in_flight: f64::from(peak) / 2.0,
            requests_per_second: 100.0,
            limit,
            max_utilization: fullest,
        }
    }

    #[test]
    fn the_load_is_spread_evenly_over_the_remaining_replicas() {
        let table = [
            (
                10,
                Some(64),
                None,
                CapacityVerdict::UnknownReplicas,
                0.0,
                f64::INFINITY,
            ),
            (
                10,
                Some(64),
                Some(0),
                CapacityVerdict::NoOtherReplica,
                0.0,
                f64::INFINITY,
            ),
            (
                10,
                None,
                Some(2),
                CapacityVerdict::UnknownLimit,
                2.0 / 3.0,
                15.0,
            ),
            (
                10,
                Some(15),
                Some(2),
                CapacityVerdict::Sufficient,
                2.0 / 3.0,
                15.0,
            ),
            (
                10,
                Some(14),
                Some(2),
                CapacityVerdict::Insufficient,
                2.0 / 3.0,
                15.0,
            ),
            (
                10,
                Some(20),
                Some(1),
                CapacityVerdict::Sufficient,
                0.5,
                20.0,
            ),
            (0, Some(1), Some(1), CapacityVerdict::Sufficient, 0.5, 0.0),
        ];
        for (peak, limit, remaining_replicas, verdict, share, per_replica) in table {
            let forecast =
                forecast_without_this_instance(&observed_load(peak, limit), remaining_replicas);
            assert_eq!(
                forecast.verdict, verdict,
                "{peak} {limit:?} {remaining_replicas:?}"
            );
            assert!(
                (forecast.remaining_capacity - share).abs() < 1e-9
                    && (forecast
                        .in_flight_per_replica
                        .total_cmp(&per_replica)
                        .is_eq()),
                "{forecast:?}"
            );
        }
    }

    #[test]
    fn the_most_utilized_limit_decides() {
        let crowded = ObservedLoad {
            max_utilization: 0.95,
            ..observed_load(19, Some(520))
        };
        assert_eq!(
            forecast_without_this_instance(&crowded, Some(1)).verdict,
            CapacityVerdict::Insufficient
        );
        assert_eq!(
            forecast_without_this_instance(
                &ObservedLoad {
                    max_utilization: 0.5,
                    ..crowded
                },
                Some(1)
            )
            .verdict,
            CapacityVerdict::Sufficient
        );
    }

    #[test]
    fn the_max_rate_per_replica_follows_from_littles_law() {
        let forecast = forecast_without_this_instance(&observed_load(10, Some(50)), Some(2));
        assert_eq!(
            (
                forecast.requests_per_second_per_replica,
                forecast.max_requests_per_second_per_replica
            ),
            (150.0, Some(1_000.0)),
            "5 in flight at 100 a second are 50 ms each"
        );
        let idle = ObservedLoad {
            peak_in_flight: 0,
            mean_in_flight: 0.0,
            requests_per_second: 0.0,
            limit: Some(8),
            max_utilization: 0.0,
        };
        assert_eq!(
            forecast_without_this_instance(&idle, Some(1)).max_requests_per_second_per_replica,
            None
        );
    }
}
