use crate::telemetry::reason::*;

#[test]
fn the_index_of_a_reason_is_its_position_in_all() {
    for (index, reason) in Reason::ALL.iter().enumerate() {
        assert_eq!(reason.index(), index);
    }
}
