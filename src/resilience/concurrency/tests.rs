use crate::resilience::concurrency::*;

fn limit(max_in_flight: u32, max_pending: u32) -> ConcurrencyLimit {
    ConcurrencyLimit::new(config(max_in_flight, max_pending))
}

fn config(max_in_flight: u32, max_pending: u32) -> ConcurrencyConfig {
    ConcurrencyConfig {
        max_in_flight: NonZeroU32::new(max_in_flight).expect("not zero"),
        max_pending,
    }
}

fn acquire_queued(limit: &mut ConcurrencyLimit) -> QueueTicket {
    match limit.try_acquire() {
        ConcurrencyDecision::Queued(ticket) => ticket,
        other => panic!("{other:?}"),
    }
}

#[test]
fn admits_then_queues_then_rejects() {
    let mut limit = limit(2, 1);
    assert_eq!(
        [limit.try_acquire(), limit.try_acquire()],
        [ConcurrencyDecision::Admitted; 2]
    );
    let _ticket = acquire_queued(&mut limit);
    assert_eq!(limit.try_acquire(), ConcurrencyDecision::Rejected);
    assert_eq!(
        (limit.in_flight(), limit.pending(), limit.rejected()),
        (2, 1, 1)
    );
}

#[test]
fn a_released_permit_goes_to_the_oldest_ticket() {
    let mut limit = limit(1, 2);
    let _admitted = limit.try_acquire();
    let (first, second) = (acquire_queued(&mut limit), acquire_queued(&mut limit));
    assert_eq!(limit.release(), Some(first));
    assert_eq!(limit.release(), Some(second));
    assert_eq!(limit.release(), None);
    assert_eq!(limit.in_flight(), 0);
}

#[test]
fn a_new_call_does_not_overtake_the_queue() {
    let mut limit = limit(1, 2);
    let _admitted = limit.try_acquire();
    let first = acquire_queued(&mut limit);
    assert_eq!(limit.release(), Some(first));
    let _second = acquire_queued(&mut limit);
    assert_eq!(limit.in_flight(), 1);
}

#[test]
fn abandoning_removes_a_queued_ticket_and_reports_an_admitted_one() {
    let mut limit = limit(1, 2);
    let _admitted = limit.try_acquire();
    let (first, second) = (acquire_queued(&mut limit), acquire_queued(&mut limit));
    assert!(limit.abandon(first));
    assert_eq!(limit.release(), Some(second));
    assert!(!limit.abandon(second), "it was admitted");
    assert_eq!(limit.release(), None);
    assert_eq!((limit.in_flight(), limit.pending()), (0, 0));
}

#[test]
fn raising_the_limit_admits_queued_calls_and_lowering_it_interrupts_none() {
    let mut limit = limit(1, 3);
    let _admitted = limit.try_acquire();
    let (first, second, third) = (
        acquire_queued(&mut limit),
        acquire_queued(&mut limit),
        acquire_queued(&mut limit),
    );
    assert_eq!(limit.reconfigure(config(3, 3)), [first, second]);
    assert_eq!(limit.reconfigure(config(1, 3)), []);
    assert_eq!(limit.in_flight(), 3);
    assert_eq!([limit.release(), limit.release()], [None, None]);
    assert_eq!(limit.release(), Some(third));
}

/// Compares the limit with a naive model of two counters and a list.
#[test]
fn the_limit_agrees_with_two_counters_and_a_list() {
    let mut state = 7_u64;
    let mut draw = |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut limit = limit(3, 4);
    let (mut running, mut waiting) = (0_u32, Vec::<QueueTicket>::new());
    for _ in 0..50_000 {
        match draw(3) {
            0 => match limit.try_acquire() {
                ConcurrencyDecision::Admitted => {
                    assert!(running < 3 && waiting.is_empty());
                    running += 1;
                }
                ConcurrencyDecision::Queued(ticket) => {
                    assert!(running >= 3 && waiting.len() < 4);
                    waiting.push(ticket);
                }
                ConcurrencyDecision::Rejected => assert!(running >= 3 && waiting.len() == 4),
            },
            1 if running > 0 => {
                let expected = (!waiting.is_empty()).then(|| waiting.remove(0));
                running -= u32::from(expected.is_none());
                assert_eq!(limit.release(), expected);
            }
            _ if !waiting.is_empty() => {
                let index = usize::try_from(draw(waiting.len() as u64)).expect("small");
                assert!(limit.abandon(waiting.remove(index)));
            }
            _ => {}
        }
        assert_eq!(
            (limit.in_flight(), limit.pending()),
            (running, u32::try_from(waiting.len()).expect("small"))
        );
    }
}

#[test]
fn a_responding_call_counts_against_the_configured_limit_only() {
    let mut limit = limit(4, 2);
    assert_eq!(limit.set_adaptive_limit(NonZeroU32::new(1)), []);
    let _first = limit.try_acquire();
    let waiting = acquire_queued(&mut limit);
    assert_eq!(
        limit.begin_response(),
        Some(waiting),
        "the lower bound is for who is worked on"
    );
    assert_eq!(
        (
            limit.awaiting_response(),
            limit.in_flight(),
            limit.effective_limit().get()
        ),
        (1, 2, 1)
    );
    for _ in 0..2 {
        assert_eq!(limit.begin_response(), None);
        assert_eq!(limit.try_acquire(), ConcurrencyDecision::Admitted);
    }
    assert_eq!(limit.begin_response(), None);
    let last = acquire_queued(&mut limit);
    assert_eq!(
        (limit.awaiting_response(), limit.in_flight()),
        (0, 4),
        "nobody is worked on, and the written bound holds"
    );
    assert_eq!(limit.end_response(), Some(last));
    assert_eq!((limit.awaiting_response(), limit.in_flight()), (1, 4));
    assert!(
        !limit.has_room_for(PriorityClass::High),
        "nine tenths of the written bound are full of answers"
    );
    assert_eq!(limit.release(), None);
    (0..3).for_each(|_| assert_eq!(limit.end_response(), None));
    assert_eq!((limit.awaiting_response(), limit.in_flight()), (0, 0));
}

#[test]
fn clearing_the_adaptive_limit_admits_queued_calls() {
    let mut limit = limit(3, 3);
    assert_eq!(limit.set_adaptive_limit(NonZeroU32::new(1)), []);
    let _first = limit.try_acquire();
    let (second, third) = (acquire_queued(&mut limit), acquire_queued(&mut limit));
    assert_eq!(limit.set_adaptive_limit(None), [second, third]);
    assert_eq!(limit.in_flight(), 3);
}
