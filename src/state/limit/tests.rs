use super::*;
use crate::resilience::{adaptive::Algorithm, some_instant};

fn limit(max_in_flight: u32, max_pending: u32, mode: Mode) -> Arc<LimitState> {
    let max_in_flight = NonZeroU32::new(max_in_flight).expect("not zero");
    Arc::new(LimitState::new(
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

fn numbers(limit: &LimitState) -> (u32, u32) {
    let snapshot = limit.snapshot();
    (snapshot.in_flight, snapshot.pending)
}

#[tokio::test]
async fn who_waits_is_told_when_a_place_comes_free() {
    let limit = limit(1, 1, Mode::Enforce);
    let Entry::Admitted(first) = limit.enter(Class::Critical) else {
        panic!("room")
    };
    let Entry::Queued(waiting) = limit.enter(Class::Critical) else {
        panic!("queue")
    };
    assert!(matches!(limit.enter(Class::Critical), Entry::Refused));
    drop(first);
    let second = waiting.await;
    assert_eq!(numbers(&limit), (1, 0));
    drop(second);
    assert_eq!(numbers(&limit), (0, 0));
}

#[test]
fn a_waiter_that_leaves_takes_nothing_with_it() {
    let limit = limit(1, 2, Mode::Enforce);
    let Entry::Admitted(first) = limit.enter(Class::Critical) else {
        panic!("room")
    };
    let (Entry::Queued(leaving), Entry::Queued(staying)) =
        (limit.enter(Class::Critical), limit.enter(Class::Critical))
    else {
        panic!("queue")
    };
    drop(leaving);
    drop(first);
    assert_eq!(numbers(&limit), (1, 0), "the second in line was admitted");
    drop(staying);
    assert_eq!(
        numbers(&limit),
        (0, 0),
        "admitted and never polled: the place came back"
    );
}

#[test]
fn shadow_lets_pass_and_counts() {
    let limit = limit(1, 0, Mode::Shadow);
    let first = limit.enter(Class::Critical);
    let second = limit.enter(Class::Critical);
    assert!(matches!(
        (&first, &second),
        (Entry::Admitted(_), Entry::WouldRefuse(_))
    ));
    assert_eq!(numbers(&limit), (2, 0));
    drop((first, second));
    assert_eq!(numbers(&limit), (0, 0));
}

#[test]
fn an_adaptive_limit_lowers_the_written_one_and_only_watches_in_shadow() {
    let (start, written) = (
        some_instant(),
        ConcurrencyConfig {
            max_in_flight: NonZeroU32::new(100).expect("not zero"),
            max_pending: 0,
        },
    );
    let config = AdaptiveConfig {
        algorithm: Algorithm::Gradient2,
        min_limit: 2,
        max_limit: 100,
    };
    for mode in [Mode::Enforce, Mode::Shadow] {
        let limit = Arc::new(LimitState::new(
            "app".into(),
            written,
            Mode::Enforce,
            Some((config, mode)),
            start,
        ));
        let entries: Vec<_> = (0..3).map(|_| limit.enter(Class::Critical)).collect();
        let third = if mode == Mode::Enforce {
            matches!(entries[2], Entry::Refused)
        } else {
            matches!(entries[2], Entry::WouldRefuse(_))
        };
        assert!(third, "{mode:?}: it begins with the lowest limit");
        let Entry::Admitted(guard) = &entries[1] else {
            panic!("room")
        };
        let learner = guard.learner().expect("it is adaptive");
        for call in 1..=200 {
            learner.note(
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
        limit.reconfigure(written, Mode::Enforce, None, start);
        assert_eq!(
            limit.snapshot().config,
            written,
            "what is taken out of the policy is over at once"
        );
    }
}
