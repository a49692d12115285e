use crate::resilience::{hedge::*, some_instant};

fn estimator() -> HedgeDelayEstimator {
    HedgeDelayEstimator::new(
        HedgeConfig {
            max_attempts: NonZeroU32::MIN,
            delay: None,
        },
        some_instant(),
    )
}

#[test]
fn a_configured_delay_applies_from_the_first_request() {
    let delay = Some(Duration::from_millis(80));
    let mut estimator = HedgeDelayEstimator::new(
        HedgeConfig {
            max_attempts: NonZeroU32::MIN,
            delay,
        },
        some_instant(),
    );
    estimator.record_latency(Duration::from_secs(9), some_instant());
    assert_eq!(estimator.delay(some_instant()), delay);
}

#[test]
fn the_estimated_delay_is_the_95th_percentile() {
    let (mut estimator, now) = (estimator(), some_instant());
    for answer in 1..=MIN_SAMPLES {
        assert_eq!(estimator.delay(now), None, "{answer}");
        estimator.record_latency(
            if answer % 25 == 0 {
                Duration::from_secs(1)
            } else {
                Duration::from_millis(10)
            },
            now,
        );
    }
    let delay = estimator.delay(now).expect("enough are known");
    assert!(
        delay >= Duration::from_millis(10) && delay < Duration::from_millis(12),
        "{delay:?}"
    );
}

#[test]
fn latencies_older_than_a_minute_are_dropped() {
    let (mut estimator, start) = (estimator(), some_instant());
    let fill = |estimator: &mut HedgeDelayEstimator, millis, now| {
        (0..MIN_SAMPLES).for_each(|_| estimator.record_latency(Duration::from_millis(millis), now))
    };
    fill(&mut estimator, 100, start);
    assert!(
        estimator
            .delay(start + HALF_WINDOW)
            .expect("the older half counts")
            >= Duration::from_millis(100)
    );
    fill(&mut estimator, 10, start + HALF_WINDOW);
    fill(&mut estimator, 10, start + HALF_WINDOW * 2);
    assert!(
        estimator.delay(start + HALF_WINDOW * 2).expect("enough") < Duration::from_millis(12),
        "the first half is gone"
    );
    assert_eq!(
        estimator.delay(start + HALF_WINDOW * 5),
        None,
        "after a pause nothing is known"
    );
}

#[test]
fn the_estimated_delay_is_at_least_the_minimum() {
    let (mut estimator, now) = (estimator(), some_instant());
    (0..MIN_SAMPLES).for_each(|_| estimator.record_latency(Duration::from_micros(90), now));
    assert_eq!(estimator.delay(now), Some(MIN_DELAY));
}
