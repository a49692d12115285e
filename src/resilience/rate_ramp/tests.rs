use crate::resilience::{rate_ramp::*, some_instant};

/// Returns the number of requests admitted in each second under far more demand than the rate.
fn admitted_under_full_load(seconds: u32, factor: u32) -> Vec<u32> {
    let (config, start) = (
        RateRampConfig::new(100.0, Duration::from_secs(10), factor),
        some_instant(),
    );
    let mut ramp = RateRamp::new(&config, start);
    let mut due = start;
    let mut admitted = vec![0; seconds as usize];
    for milli in 0..seconds * 1_000 {
        let now = start + Duration::from_millis(milli.into());
        let cost_factor = ramp.token_cost_factor(&config, now);
        if due <= now {
            due += Duration::from_secs_f64(cost_factor / 100.0);
            ramp.record_taken(1);
            admitted[(milli / 1_000) as usize] += 1;
        }
    }
    admitted
}

#[test]
fn a_cold_rate_starts_at_a_fraction_and_reaches_the_full_rate_within_the_window() {
    let admitted = admitted_under_full_load(20, 3);
    assert!((32..=35).contains(&admitted[0]), "a third: {admitted:?}");
    assert!(
        admitted.windows(2).all(|pair| pair[1] + 1 >= pair[0]),
        "it never falls: {admitted:?}"
    );
    assert!(
        admitted[..11].iter().sum::<u32>() < 800,
        "it is spread over the window: {admitted:?}"
    );
    assert!(
        admitted[12..]
            .iter()
            .all(|admitted| (99..=101).contains(admitted)),
        "{admitted:?}"
    );
    assert!((19..=21).contains(&admitted_under_full_load(1, 5)[0]));
}

#[test]
fn the_rate_is_cold_again_after_low_demand() {
    let (config, start) = (
        RateRampConfig::new(100.0, Duration::from_secs(10), 3),
        some_instant(),
    );
    let mut ramp = RateRamp::new(&config, start);
    for second in 1..=15 {
        ramp.record_taken(100);
        ramp.token_cost_factor(&config, start + Duration::from_secs(second));
    }
    let warm = start + Duration::from_secs(15);
    assert!((ramp.token_cost_factor(&config, warm) - 1.0).abs() < 1e-9);
    let cold = ramp.token_cost_factor(&config, warm + Duration::from_mins(1));
    assert!((cold - 3.0).abs() < 1e-9, "{cold}");
}

#[test]
fn a_steady_load_below_the_rate_keeps_the_rate_warm() {
    let (config, start) = (
        RateRampConfig::new(100.0, Duration::from_secs(10), 3),
        some_instant(),
    );
    let mut ramp = RateRamp::new(&config, start);
    let mut cost_factor = 3.0;
    for second in 1..=60 {
        ramp.record_taken(60);
        cost_factor = ramp.token_cost_factor(&config, start + Duration::from_secs(second));
    }
    assert!(cost_factor < 1.1, "{cost_factor}");
}
