use crate::resilience::ratio::*;

#[test]
fn from_percent_accepts_only_0_to_100() {
    for bad in [-0.1, 100.1, f64::NAN, f64::INFINITY] {
        assert!(Ratio::from_percent(bad).is_err(), "{bad}");
    }
    for good in [0.0, 50.0, 100.0] {
        assert!(Ratio::from_percent(good).is_ok(), "{good}");
    }
}

#[test]
fn a_fraction_of_zero_is_zero() {
    assert_eq!(Ratio::from_fraction(0, 0), Ratio::ZERO);
    assert_eq!(Ratio::from_fraction(3, 3), Ratio::ONE);
}
