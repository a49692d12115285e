use super::*;

#[test]
fn every_occurrence_is_reported_once() {
    let tally = Tally::default();
    tally.record();
    tally.record();
    assert_eq!(tally.take_unreported(), 2);
    assert_eq!(tally.take_unreported(), 0);
    tally.record();
    assert_eq!((tally.take_unreported(), tally.total()), (1, 3));
}
