use crate::policy::units::*;

#[test]
fn durations_parse_as_gep_2257() {
    for (text, millis) in [
        ("0s", 0),
        ("250ms", 250),
        ("15s", 15_000),
        ("1h30m", 5_400_000),
        ("1m30s500ms", 90_500),
        ("99999h", 359_996_400_000),
    ] {
        assert_eq!(
            text.parse::<PolicyDuration>()
                .map(|span| span.0.as_millis()),
            Ok(millis),
            "{text}"
        );
    }
    for text in [
        "",
        "1",
        "s",
        "1.5s",
        "-1s",
        "1d",
        "100000s",
        "1s1s1s1s1s",
        "1 s",
        "１s",
    ] {
        assert!(text.parse::<PolicyDuration>().is_err(), "{text}");
    }
}

#[test]
fn a_duration_displays_in_the_form_it_parses() {
    for text in ["0s", "250ms", "15s", "1h30m", "1m30s500ms"] {
        assert_eq!(
            text.parse::<PolicyDuration>()
                .map(|span| span.to_string())
                .as_deref(),
            Ok(text)
        );
    }
}

#[test]
fn byte_sizes_parse_as_kubernetes_quantities() {
    for (text, bytes) in [
        ("0", 0),
        ("512", 512),
        ("64Ki", 65_536),
        ("10M", 10_000_000),
        ("1Gi", 1 << 30),
    ] {
        assert_eq!(text.parse::<ByteSize>(), Ok(ByteSize(bytes)), "{text}");
    }
    for text in [
        "",
        "Ki",
        "1KiB",
        "1.5Mi",
        "-1",
        "99999999999999999999",
        "1 Ki",
        "1é",
    ] {
        assert!(text.parse::<ByteSize>().is_err(), "{text}");
    }
}

#[test]
fn status_ranges_parse_codes_classes_ranges_and_gateway_error() {
    for (text, first, last) in [
        ("503", 503, 503),
        ("5xx", 500, 599),
        ("500-504", 500, 504),
        ("gateway-error", 502, 504),
    ] {
        assert_eq!(
            text.parse::<StatusRange>(),
            Ok(StatusRange { first, last }),
            "{text}"
        );
    }
    for text in [
        "", "99", "600", "6xx", "0xx", "xx", "504-500", "5xx-6xx", "+503", "999xx",
    ] {
        assert!(text.parse::<StatusRange>().is_err(), "{text}");
    }
}

#[test]
fn a_status_set_contains_exactly_its_ranges() {
    let ranges = ["100", "429", "5xx"].map(|text| text.parse::<StatusRange>().expect("good"));
    let set: StatusSet = ranges.iter().collect();
    let expected: Vec<u16> = [100, 429].into_iter().chain(500..600).collect();
    let contained: Vec<u16> = (0..=u16::MAX)
        .filter(|status| set.contains(*status))
        .collect();
    assert_eq!(contained, expected);
}

#[test]
fn a_status_set_is_written_as_policies_write_it() {
    let table = [
        (&["5xx"][..], "5xx"),
        (&["502-504", "429"], "429 502-504"),
        (&["450-599"], "450-599"),
        (&["1xx", "2xx", "599"], "1xx 2xx 599"),
        (&[], ""),
    ];
    for (ranges, expected) in table {
        let ranges = ranges.iter().map(|text| text.parse::<StatusRange>());
        let ranges: Vec<StatusRange> = ranges.collect::<Result<_, _>>().expect("valid ranges");
        let set: StatusSet = ranges.iter().collect();
        assert_eq!(set.to_string(), expected);
    }
}

#[test]
fn a_point_in_time_has_a_year_that_rfc_3339_can_write() {
    let time: Timestamp = "2026-12-01T01:00:00+01:00".parse().expect("valid");
    assert_eq!(time.to_string(), "2026-12-01T00:00:00Z");
    for text in [
        "9999-12-31T23:59:59-01:00",
        "0000-01-01T00:00:00+01:00",
        "2026-12-01",
    ] {
        assert!(text.parse::<Timestamp>().is_err(), "{text}");
    }
}
