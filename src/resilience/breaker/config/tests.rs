use std::time::Duration;

use crate::resilience::{
    breaker::{
        config::*,
        tests::{non_zero, thresholds, times},
    },
    ratio::Ratio,
};

#[test]
fn invalid_configurations_are_rejected() {
    let nothing = BreakerThresholds {
        consecutive_failures: None,
        failure_rate: None,
        slow_call_rate: None,
        ..thresholds()
    };
    let zero_rate = BreakerThresholds {
        failure_rate: Some(Ratio::ZERO),
        ..thresholds()
    };
    let cases = [
        (nothing, times(), InvalidBreaker::NoThreshold),
        (zero_rate, times(), InvalidBreaker::ZeroRateThreshold),
        (
            thresholds(),
            BreakerTimes {
                window: Duration::ZERO,
                ..times()
            },
            InvalidBreaker::ZeroWindow,
        ),
        (
            thresholds(),
            BreakerTimes {
                open_duration: Duration::ZERO,
                ..times()
            },
            InvalidBreaker::ZeroOpenDuration,
        ),
        (
            thresholds(),
            BreakerTimes {
                max_open_duration: Duration::from_secs(4),
                ..times()
            },
            InvalidBreaker::MaxOpenBelowOpen,
        ),
        (
            thresholds(),
            BreakerTimes {
                max_half_open_duration: Duration::ZERO,
                ..times()
            },
            InvalidBreaker::ZeroHalfOpenDuration,
        ),
    ];
    for (thresholds, times, expected) in cases {
        assert_eq!(
            BreakerConfig::try_new(thresholds, times, non_zero(1)),
            Err(expected)
        );
    }
}
