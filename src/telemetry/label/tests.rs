use super::*;

#[test]
fn the_index_of_a_retry_stop_reason_is_its_position() {
    for (index, reason) in RetryStopReason::ALL.into_iter().enumerate() {
        assert_eq!(reason.index(), index, "{}", reason.label());
    }
}
