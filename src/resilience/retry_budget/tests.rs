use crate::resilience::{retry_budget::*, some_instant};

fn budget(percent: f64, floor: u32, now: Instant) -> BackendRetryBudget {
    let share = Ratio::from_percent(percent).expect("a percentage");
    BackendRetryBudget::new(
        RetryBudgetConfig {
            share,
            floor,
            ..RetryBudgetConfig::default()
        },
        now,
    )
}

fn withdraw_all(budget: &mut BackendRetryBudget, now: Instant) -> u32 {
    let mut taken = 0;
    while budget.try_withdraw(now) {
        taken += 1;
    }
    taken
}

#[test]
fn the_floor_is_available_each_second_without_requests() {
    let start = some_instant();
    let mut budget = budget(20.0, 10, start);
    assert_eq!(withdraw_all(&mut budget, start), 10);
    assert_eq!(
        withdraw_all(&mut budget, start + Duration::from_millis(999)),
        0
    );
    assert_eq!(
        withdraw_all(&mut budget, start + Duration::from_secs(1)),
        10
    );
}

#[test]
fn the_share_of_requests_is_available() {
    let start = some_instant();
    let mut budget = budget(20.0, 0, start);
    for _ in 0..1_000 {
        budget.deposit(start);
    }
    assert_eq!(withdraw_all(&mut budget, start), 200);
    assert_eq!(
        withdraw_all(&mut budget, start + Duration::from_secs(10)),
        0,
        "the requests have left the window too"
    );
}

#[test]
fn no_retry_is_allowed_without_share_and_floor() {
    let start = some_instant();
    let mut budget = budget(0.0, 0, start);
    budget.deposit(start);
    assert!(!budget.try_withdraw(start));
}

/// Verifies that a backend that is down for ten seconds receives no more retries than share and
/// floor allow.
#[test]
fn a_retry_storm_stays_within_share_and_floor() {
    let start = some_instant();
    let mut budget = budget(20.0, 10, start);
    let (mut requests, mut retries) = (0_u32, 0_u32);
    for millis in 0..10_000_u64 {
        let now = start + Duration::from_millis(millis);
        for _ in 0..2 {
            budget.deposit(now);
            requests += 1;
            retries += u32::from(budget.try_withdraw(now));
        }
    }
    let ceiling = requests / 5 + 10 * 10;
    assert!(
        retries <= ceiling,
        "{retries} retries of {requests} requests, at most {ceiling}"
    );
    assert!(
        retries >= requests / 5 - 20,
        "{retries} retries: the share was not usable"
    );
}
