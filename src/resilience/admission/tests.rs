use crate::resilience::{admission::*, some_instant};

fn config() -> AdmissionConfig {
    let percent = |percent| Ratio::from_percent(percent).expect("a percentage");
    AdmissionConfig {
        window: Duration::from_secs(30),
        min_success_rate: percent(95.0),
        aggression: 1.0,
        min_request_rate: 5,
        max_rejection: percent(80.0),
    }
}

fn rejection_percent_after(config: AdmissionConfig, total: u32, successes: u32) -> f64 {
    let start = some_instant();
    let mut control = AdmissionController::new(config, start);
    (0..total).for_each(|call| control.record_result(call < successes, start));
    control.rejection_probability(start).percent()
}

#[test]
fn the_rejection_probability_follows_the_formula() {
    let table = [
        (1_000, 1_000, 0.0),
        (1_000, 950, 0.0),
        (1_000, 900, 5.258),
        (1_000, 500, 47.321),
        (1_000, 0, 80.0),
        (149, 0, 0.0),
        (150, 0, 80.0),
    ];
    for (total, successes, expected) in table {
        let percent = rejection_percent_after(config(), total, successes);
        assert!(
            (percent - expected).abs() < 0.001,
            "{successes} of {total}: {percent}"
        );
    }
    let eager = AdmissionConfig {
        aggression: 2.0,
        ..config()
    };
    assert!(
        (rejection_percent_after(eager, 1_000, 900) - 22.930).abs() < 0.001,
        "the square root: {}",
        rejection_percent_after(eager, 1_000, 900)
    );
}

#[test]
fn a_recovered_backend_receives_all_requests_again() {
    let start = some_instant();
    let mut control = AdmissionController::new(config(), start);
    let (mut seed, mut refused) = (1_u64, [0_u32; 4]);
    for call in 0..40_000_u32 {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let random = f64::from(u32::try_from(seed >> 32).expect("32 bits")) / f64::from(u32::MAX);
        // The rate is 100 calls per second. All calls from 100 s to 200 s fail.
        let now = start + Duration::from_millis(10) * call;
        if control.should_admit(random, now) {
            control.record_result(!(10_000..20_000).contains(&call), now);
        } else {
            refused[(call / 10_000) as usize] += 1;
        }
    }
    assert_eq!([refused[0], refused[3]], [0, 0], "{refused:?}");
    assert!(
        (6_000..=8_100).contains(&refused[1]),
        "four of five, once the window is full of it: {refused:?}"
    );
    assert!(refused[2] < 2_500, "{refused:?}");
}
