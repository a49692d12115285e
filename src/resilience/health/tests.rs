use Health::{Healthy, Unhealthy, Unknown};

use crate::resilience::health::*;

fn config() -> HealthConfig {
    HealthConfig {
        unhealthy_threshold: NonZeroU32::new(3).expect("3"),
        healthy_threshold: NonZeroU32::new(2).expect("2"),
    }
}

fn health_after(results: &str) -> Health {
    let mut state = HealthState::default();
    for result in results.chars() {
        state.record(&config(), result == '+');
    }
    state.health()
}

#[test]
fn health_changes_only_after_the_threshold_of_consecutive_results() {
    let table = [
        ("", Unknown),
        ("+", Healthy),
        ("--", Unknown),
        ("---", Unhealthy),
        ("--+", Healthy),
        ("+--", Healthy),
        ("+---", Unhealthy),
        ("+--+--", Healthy),
        ("---+", Unhealthy),
        ("---+-+", Unhealthy),
        ("---++", Healthy),
    ];
    for (results, expected) in table {
        assert_eq!(health_after(results), expected, "{results}");
    }
}

#[test]
fn a_change_of_health_is_returned_once() {
    let mut state = HealthState::default();
    assert_eq!(state.record(&config(), true), Some(Healthy));
    assert_eq!(state.record(&config(), true), None);
    assert_eq!(state.consecutive_passes(), 2);
    assert_eq!(
        [
            state.record(&config(), false),
            state.record(&config(), false)
        ],
        [None, None]
    );
    assert_eq!(state.record(&config(), false), Some(Unhealthy));
    assert_eq!(state.record(&config(), false), None);
    assert_eq!(state.consecutive_passes(), 0);
}
