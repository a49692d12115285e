use crate::{
    resilience::{lifecycle::DrainConfig, some_instant},
    state::instance::drain::*,
};

#[test]
fn a_draining_header_is_parsed_or_ignored() {
    let table = [
        ("1; ttl=30", Some(30)),
        ("1;ttl=7", Some(7)),
        ("1; endpoint=10.0.0.7:80; ttl=120", Some(120)),
        ("1", Some(30)),
        ("1; ttl=soon", Some(30)),
        ("1; ttl=999999", Some(600)),
        ("0; ttl=30", None),
        ("", None),
        ("yes", None),
    ];
    for (text, expected) in table {
        assert_eq!(
            parse_draining_ttl(text).map(|ttl| ttl.as_secs()),
            expected,
            "{text}"
        );
    }
}

#[test]
fn the_draining_ttl_is_the_time_to_the_drain_deadline_plus_the_margin() {
    let start = some_instant();
    let drain = DrainState::new(start);
    assert_eq!(drain.draining_header(|| start), None);
    drain.publish(&DrainSequence::begin(DrainConfig::default(), start));
    let header_after = |seconds| {
        drain
            .draining_header(|| start + Duration::from_secs(seconds))
            .unwrap_or_default()
    };
    assert_eq!(
        (header_after(0), header_after(24), header_after(99)),
        (
            "1; ttl=30".to_owned(),
            "1; ttl=6".to_owned(),
            "1; ttl=5".to_owned()
        )
    );
    drain.publish(&DrainSequence::begin_handed_over(
        DrainConfig::default(),
        start,
    ));
    assert_eq!(
        drain.draining_header(|| start),
        None,
        "its address does not go away"
    );
}
