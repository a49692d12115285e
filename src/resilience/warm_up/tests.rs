use crate::resilience::warm_up::*;

#[track_caller]
fn assert_factors(aggression: f64, table: &[(f64, f64)]) {
    let config = WarmUpConfig::try_new(
        Duration::from_secs(60),
        aggression,
        Ratio::from_percent(10.0).expect("10 %"),
    )
    .expect("fine");
    for (age, expected) in table {
        let factor = config.factor(Duration::from_secs_f64(*age));
        assert!(
            (factor - expected).abs() < 0.001,
            "aggression {aggression}, {age} s: {factor}"
        );
    }
}

#[test]
fn the_factor_follows_the_curve_and_is_clamped() {
    assert_factors(
        1.0,
        &[
            (0.0, 0.1),
            (3.0, 0.1),
            (6.0, 0.1),
            (15.0, 0.25),
            (30.0, 0.5),
            (59.9, 0.998),
            (60.0, 1.0),
            (600.0, 1.0),
        ],
    );
    assert_factors(2.0, &[(0.0, 0.129), (15.0, 0.5), (60.0, 1.0)]);
    assert_factors(
        0.5,
        &[
            (0.0, 0.1),
            (15.0, 0.1),
            (30.0, 0.25),
            (54.0, 0.81),
            (60.0, 1.0),
        ],
    );
}

#[test]
fn the_factor_never_falls_with_age() {
    for aggression in [0.2, 1.0, 5.0] {
        let config = WarmUpConfig::try_new(Duration::from_millis(500), aggression, Ratio::ZERO)
            .expect("fine");
        let shares: Vec<f64> = (0..1_000)
            .map(|millis| config.factor(Duration::from_millis(millis)))
            .collect();
        assert!(shares.windows(2).all(|pair| pair[0] <= pair[1]));
        assert!(shares.iter().all(|share| (0.0..=1.0).contains(share)));
    }
}

#[test]
fn the_sampler_admits_its_share_to_within_one_request() {
    for share in [0.0, 0.1, 0.25, 1.0 / 3.0, 0.9, 1.0] {
        let mut sampler = DeterministicSampler::default();
        let mut passed = 0.0;
        for requests in 1..=1_000_u32 {
            passed += f64::from(u8::from(sampler.admits(share)));
            let due = share * f64::from(requests);
            assert!(
                passed <= due + 1e-6 && passed > due - 1.0 - 1e-6,
                "{passed} of {requests} at {share}"
            );
        }
    }
}

#[test]
fn an_invalid_curve_is_rejected() {
    let ten = Ratio::from_percent(10.0).expect("10 %");
    assert_eq!(
        WarmUpConfig::try_new(Duration::ZERO, 1.0, ten),
        Err(InvalidWarmUp::ZeroWindow)
    );
    for aggression in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(
            WarmUpConfig::try_new(Duration::from_secs(1), aggression, ten),
            Err(InvalidWarmUp::NonPositiveAggression)
        );
    }
}
