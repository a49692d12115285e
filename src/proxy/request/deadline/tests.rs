use crate::proxy::request::deadline::*;

#[test]
fn grpc_timeout_is_parsed_in_every_unit() {
    let table = [
        ("1H", Some(3_600_000_000_000)),
        ("2M", Some(120_000_000_000)),
        ("3S", Some(3_000_000_000)),
        ("250m", Some(250_000_000)),
        ("7u", Some(7_000)),
        ("9n", Some(9)),
        ("99999999S", Some(99_999_999_000_000_000)),
        ("100000000S", None),
        ("", None),
        ("S", None),
        ("-1S", None),
        ("1.5S", None),
        ("1s", None),
        ("1é", None),
    ];
    for (text, nanos) in table {
        assert_eq!(
            parse_grpc_timeout(text),
            nanos.map(Duration::from_nanos),
            "{text}"
        );
    }
}

#[test]
fn deadline_header_accepts_only_whole_milliseconds() {
    for (text, millis) in [
        ("250", Some(250)),
        (" 7 ", Some(7)),
        ("0", Some(0)),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("1s", None),
        ("soon", None),
    ] {
        assert_eq!(
            parse_millis(text),
            millis.map(Duration::from_millis),
            "{text}"
        );
    }
    assert_eq!(parse_millis("99999999999999999999999"), Some(Duration::MAX));
}

#[test]
fn formatted_grpc_timeout_is_rounded_down_but_never_zero() {
    for (left, expected) in [
        (250_000, "250m"),
        (999, "999u"),
        (0, "1u"),
        (1_500_999, "1500m"),
        (200_000_000_000, "200000S"),
    ] {
        assert_eq!(
            format_grpc_timeout(Duration::from_micros(left)),
            expected,
            "{left} us"
        );
    }
}
