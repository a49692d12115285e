use crate::proxy::request::grpc::*;

#[test]
fn an_invalid_grpc_status_is_parsed_as_unknown() {
    for (text, expected) in [
        ("0", 0),
        ("14", 14),
        (" 5 ", 5),
        ("17", 2),
        ("-1", 2),
        ("many", 2),
        ("", 2),
    ] {
        let mut fields = Headers::default();
        fields.insert(STATUS, text);
        assert_eq!(parse_status(&fields), Some(expected), "{text:?}");
    }
    assert_eq!(parse_status(&Headers::default()), None);
}

#[test]
fn only_backend_failures_count_as_breaker_failures() {
    let failures: Vec<u8> = (0..=16)
        .filter(|status| verdict_from_status(*status).breaker_outcome == CallOutcome::Failure)
        .collect();
    assert_eq!(failures, [4, 13, 14, 15]);
    assert_eq!(
        verdict_from_status(8).breaker_outcome,
        CallOutcome::Throttled
    );
}

#[test]
fn retry_pushback_is_a_delay_or_forbids_a_retry() {
    for (text, expected) in [
        ("0", Some(Some(0))),
        ("250", Some(Some(250))),
        ("-1", None),
        ("soon", None),
        ("", None),
    ] {
        let mut fields = Headers::default();
        fields.insert(RETRY_PUSHBACK, text);
        assert_eq!(
            parse_retry_pushback(&fields),
            expected.map(|millis: Option<u64>| millis.map(Duration::from_millis)),
            "{text:?}"
        );
    }
    assert_eq!(parse_retry_pushback(&Headers::default()), Some(None));
}

#[test]
fn grpc_messages_are_percent_encoded() {
    assert_eq!(
        status_trailers(14, "100 % full\n").get_str(MESSAGE),
        Some("100 %25 full%0A")
    );
    assert_eq!(status_trailers(4, "é").get_str(MESSAGE), Some("%C3%A9"));
}
