use crate::resilience::backoff::*;

fn backoff() -> Backoff {
    Backoff::try_new(Duration::from_millis(25), Duration::from_millis(250)).expect("25 < 250")
}

#[test]
fn the_longest_wait_doubles_up_to_the_maximum() {
    let ceilings: Vec<u128> = (1..=6).map(|n| backoff().max_wait(n).as_millis()).collect();
    assert_eq!(ceilings, [25, 50, 100, 200, 250, 250]);
    assert_eq!(backoff().max_wait(u32::MAX), Duration::from_millis(250));
}

#[test]
fn a_wait_lies_between_zero_and_the_longest_wait() {
    assert_eq!(backoff().wait(3, 0.0), Duration::ZERO);
    assert_eq!(backoff().wait(3, 0.5), Duration::from_millis(50));
    assert!(backoff().wait(3, 0.999_999) < Duration::from_millis(100));
}

#[test]
fn a_maximum_below_the_base_is_rejected() {
    assert!(Backoff::try_new(Duration::from_millis(2), Duration::from_millis(1)).is_err());
}
