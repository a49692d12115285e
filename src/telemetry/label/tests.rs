use super::*;
use crate::telemetry::reason::Reason;

#[test]
fn the_index_of_a_retry_stop_reason_is_its_position() {
    for (index, reason) in RetryStopReason::ALL.into_iter().enumerate() {
        assert_eq!(reason.index(), index, "{}", reason.label());
    }
}

#[test]
fn the_index_of_a_declared_label_is_its_position_in_all() {
    for (index, reason) in Reason::ALL.iter().enumerate() {
        assert_eq!(reason.index(), index);
    }
}
