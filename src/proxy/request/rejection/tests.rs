use crate::{proxy::request::rejection::*, telemetry::label::CountedLabel};

#[test]
fn retry_after_is_never_rounded_down() {
    let table = [(0, 1), (1, 1), (1_000, 1), (1_001, 2), (59_999, 60)];
    for (millis, expected) in table {
        assert_eq!(
            round_up_to_seconds(Duration::from_millis(millis)),
            expected,
            "{millis} ms"
        );
    }
}

#[test]
fn every_reason_has_a_valid_status_and_only_non_errors_lack_a_proxy_error() {
    for reason in Reason::ALL {
        let status = Rejection::from_reason(*reason).status();
        assert!((200..600).contains(&status), "{reason:?} {status}");
        assert_eq!(
            properties(*reason).proxy_error.is_none(),
            matches!(reason, Reason::Redirect | Reason::Stale)
        );
    }
}
