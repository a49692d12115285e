use crate::{
    resilience::{adaptive::LimitAlgorithm, some_instant},
    state::policies::concurrency_limit::*,
};

fn limit(max_in_flight: u32, max_pending: u32, mode: Mode) -> Arc<ConcurrencyLimitState> {
    let max_in_flight = NonZeroU32::new(max_in_flight).expect("not zero");
    Arc::new(ConcurrencyLimitState::new(
        "app".into(),
        ConcurrencyConfig {
            max_in_flight,
            max_pending,
        },
        mode,
        None,
        some_instant(),
    ))
}

fn in_flight_and_pending(limit: &ConcurrencyLimitState) -> (u32, u32) {
    let snapshot = limit.snapshot();
    (snapshot.in_flight, snapshot.pending)
}

#[tokio::test]
async fn a_queued_call_is_admitted_when_a_permit_is_released() {
    let limit = limit(1, 1, Mode::Enforce);
    let AcquireOutcome::Admitted(first) = limit.try_acquire(PriorityClass::Critical) else {
        panic!("room")
    };
    let AcquireOutcome::Queued(queued) = limit.try_acquire(PriorityClass::Critical) else {
        panic!("queue")
    };
    assert!(matches!(
        limit.try_acquire(PriorityClass::Critical),
        AcquireOutcome::Rejected
    ));
    drop(first);
    let second = queued.await;
    assert_eq!(in_flight_and_pending(&limit), (1, 0));
    drop(second);
    assert_eq!(in_flight_and_pending(&limit), (0, 0));
}

#[test]
fn a_dropped_queued_call_leaks_no_permit() {
    let limit = limit(1, 2, Mode::Enforce);
    let AcquireOutcome::Admitted(first) = limit.try_acquire(PriorityClass::Critical) else {
        panic!("room")
    };
    let (AcquireOutcome::Queued(dropped), AcquireOutcome::Queued(remaining)) = (
        limit.try_acquire(PriorityClass::Critical),
        limit.try_acquire(PriorityClass::Critical),
    ) else {
        panic!("queue")
    };
    drop(dropped);
    drop(first);
    assert_eq!(
        in_flight_and_pending(&limit),
        (1, 0),
        "the second in line was admitted"
    );
    drop(remaining);
    assert_eq!(
        in_flight_and_pending(&limit),
        (0, 0),
        "admitted and never polled: the place came back"
    );
}

#[test]
fn shadow_mode_admits_and_counts() {
    let limit = limit(1, 0, Mode::Shadow);
    let first = limit.try_acquire(PriorityClass::Critical);
    let second = limit.try_acquire(PriorityClass::Critical);
    assert!(matches!(
        (&first, &second),
        (AcquireOutcome::Admitted(_), AcquireOutcome::WouldReject(_))
    ));
    assert_eq!(in_flight_and_pending(&limit), (2, 0));
    drop((first, second));
    assert_eq!(in_flight_and_pending(&limit), (0, 0));
}

#[test]
fn an_adaptive_limit_lowers_the_configured_limit_only_when_enforced() {
    let (start, configured) = (
        some_instant(),
        ConcurrencyConfig {
            max_in_flight: NonZeroU32::new(100).expect("not zero"),
            max_pending: 0,
        },
    );
    let config = AdaptiveConfig {
        algorithm: LimitAlgorithm::Gradient2,
        min_limit: 2,
        max_limit: 100,
    };
    for mode in [Mode::Enforce, Mode::Shadow] {
        let limit = Arc::new(ConcurrencyLimitState::new(
            "app".into(),
            configured,
            Mode::Enforce,
            Some((config, mode)),
            start,
        ));
        let outcomes: Vec<_> = (0..3)
            .map(|_| limit.try_acquire(PriorityClass::Critical))
            .collect();
        let is_third_over_the_limit = if mode == Mode::Enforce {
            matches!(outcomes[2], AcquireOutcome::Rejected)
        } else {
            matches!(outcomes[2], AcquireOutcome::WouldReject(_))
        };
        assert!(
            is_third_over_the_limit,
            "{mode:?}: it begins with the lowest limit"
        );
        let AcquireOutcome::Admitted(permit) = &outcomes[1] else {
            panic!("room")
        };
        let sampler = permit.sampler().expect("it is adaptive");
        for call in 1..=200 {
            sampler.record_sample(
                Duration::from_millis(5),
                false,
                start + Duration::from_millis(10 * call),
            );
        }
        let learned = limit.snapshot().adaptive.expect("it is adaptive").0;
        assert!(learned > 2, "{mode:?}: calls take no longer for it");
        assert_eq!(
            limit.snapshot().config.max_in_flight.get(),
            if mode == Mode::Enforce { learned } else { 100 }
        );
        limit.reconfigure(configured, Mode::Enforce, None, start);
        assert_eq!(
            limit.snapshot().config,
            configured,
            "what is taken out of the policy is over at once"
        );
    }
}
