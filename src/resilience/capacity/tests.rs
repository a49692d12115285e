use crate::resilience::capacity::*;

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
    use CapacityVerdict::{
        Insufficient, NoOtherReplica, Sufficient, UnknownLimit, UnknownReplicas,
    };
    let table = [
        (10, Some(64), None, UnknownReplicas, 0.0, f64::INFINITY),
        (10, Some(64), Some(0), NoOtherReplica, 0.0, f64::INFINITY),
        (10, None, Some(2), UnknownLimit, 2.0 / 3.0, 15.0),
        (10, Some(15), Some(2), Sufficient, 2.0 / 3.0, 15.0),
        (10, Some(14), Some(2), Insufficient, 2.0 / 3.0, 15.0),
        (10, Some(20), Some(1), Sufficient, 0.5, 20.0),
        (0, Some(1), Some(1), Sufficient, 0.5, 0.0),
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
