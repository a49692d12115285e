use crate::{resilience::some_instant, state::instance::instance_age::*};

fn spec(mode: Mode) -> InstanceWarmUpSpec {
    let config = WarmUpConfig::try_new(
        Duration::from_millis(2_500),
        1.0,
        Ratio::from_percent(20.0).expect("20 %"),
    );
    InstanceWarmUpSpec {
        mode,
        config: config.expect("fine"),
    }
}

#[test]
fn a_started_at_header_round_trips() {
    let start = some_instant();
    let instance_age = InstanceAge::new(start);
    assert_eq!(
        instance_age.started_at_header(None),
        None,
        "it is not ready yet"
    );
    instance_age.mark_ready(start, UNIX_EPOCH + Duration::from_millis(1_700_000_000_042));
    assert_eq!(
        instance_age
            .started_at_header(None)
            .as_deref()
            .and_then(parse_started_at),
        Some((1_700_000_000_042, None))
    );
    assert_eq!(
        instance_age.started_at_header(Some(&spec(Mode::Shadow))),
        instance_age.started_at_header(None),
        "shadow mode tells nothing"
    );
    let header = instance_age
        .started_at_header(Some(&spec(Mode::Enforce)))
        .expect("it is young");
    assert_eq!(&*header, "1700000000.042; window=2.5; aggression=1; min=20");
    assert_eq!(
        parse_started_at(&header),
        Some((1_700_000_000_042, Some(spec(Mode::Enforce).config)))
    );
    instance_age.stop_advertising(None, start + MIN_ADVERTISING_PERIOD);
    assert!(instance_age.is_advertising());
    instance_age.stop_advertising(
        None,
        start + MIN_ADVERTISING_PERIOD + Duration::from_secs(1),
    );
    assert_eq!(instance_age.started_at_header(None), None);
}

#[test]
fn a_successor_process_inherits_the_age() {
    let start = some_instant();
    let instance_age = InstanceAge::new(start);
    instance_age.inherit_age(Duration::from_millis(2_000));
    instance_age.mark_ready(start, UNIX_EPOCH + Duration::from_secs(1_700_000_000));
    assert_eq!(
        instance_age.started_at_header(None).as_deref(),
        Some("1699999998.000")
    );
    assert_eq!(
        instance_age.warm_up_factor(&spec(Mode::Enforce).config, start),
        Some(0.8)
    );
}

#[test]
fn unparsable_parameters_are_ignored() {
    let table = [
        ("1700000000", Some(false)),
        ("", None),
        ("soon", None),
        ("-3", None),
        ("1; window=0", Some(false)),
        ("1; window=9; aggression=-1", Some(false)),
        ("1; window=9; min=900", Some(false)),
        ("1;window=9;new=1", Some(true)),
        ("1; window=86401", Some(false)),
        ("1; window=1e19", Some(false)),
        ("1; window=1e300", Some(false)),
        ("1e300", None),
    ];
    for (text, expected) in table {
        assert_eq!(
            parse_started_at(text).map(|(_, warm_up)| warm_up.is_some()),
            expected,
            "{text}"
        );
    }
}

#[test]
fn the_warm_up_factor_grows_with_age() {
    let start = some_instant();
    let instance_age = InstanceAge::new(start);
    let config = spec(Mode::Enforce).config;
    let at = |millis| instance_age.warm_up_factor(&config, start + Duration::from_millis(millis));
    assert_eq!(at(9_000), None, "it is not ready yet");
    instance_age.mark_ready(start + Duration::from_secs(10), UNIX_EPOCH);
    assert_eq!(
        (at(10_000), at(12_000), at(12_500)),
        (Some(0.4), Some(0.8), None)
    );
}
