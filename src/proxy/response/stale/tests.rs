use http::StatusCode;

use crate::{policy::sections::origin::SectionOrigin, proxy::response::stale::*};

fn parse_headers(text: &str) -> Headers {
    let mut headers = Headers::default();
    for (name, value) in text.split('\n').filter_map(|line| line.split_once(": ")) {
        headers.append(name, value);
    }
    headers
}

/// Returns the seconds for which a response may be served stale, or `None` if it must not be
/// stored.
fn storable_seconds(request: &str, status: u16, response_headers: &str) -> Option<u64> {
    let spec = StaleIfErrorSpec {
        mode: Mode::Enforce,
        max_age: Duration::from_secs(300),
        max_entry_bytes: 100,
        max_bytes: 1_000,
        name: "app".into(),
        origin: SectionOrigin::BuiltIn,
    };
    let mut head = ResponseHead::new(StatusCode::from_u16(status).expect("a status"));
    head.headers = parse_headers(response_headers);
    let request = parse_headers(request);
    let allowance = stale_allowance(&spec, &head)
        .filter(|allowance| is_storable_for(&request, &head, allowance.is_public))?;
    vary_values(&request, &head.headers).map(|_| allowance.lifetime.as_secs())
}

#[test]
fn only_responses_storable_by_a_shared_cache_are_stored() {
    let table = [
        ("", Some(300)),
        ("cache-control: private", None),
        ("cache-control: max-age=60, No-Store", None),
        ("cache-control: no-cache", None),
        ("cache-control: must-revalidate, stale-if-error=60", None),
        ("cache-control: proxy-revalidate", None),
        ("set-cookie: a=b", None),
        ("vary: *", None),
        ("vary: accept, accept-language", Some(300)),
        ("content-length: 100", Some(300)),
        ("content-length: 101", None),
    ];
    for (response_headers, expected) in table {
        assert_eq!(
            storable_seconds("", 200, response_headers),
            expected,
            "{response_headers}"
        );
    }
    for status in [203, 206, 404] {
        assert_eq!(storable_seconds("", status, ""), None, "{status}");
    }
}

#[test]
fn cache_control_and_age_bound_the_time_for_which_a_response_is_stored() {
    let table = [
        ("max-age=60", Some(300)),
        ("max-age=60, stale-if-error=100", Some(160)),
        ("max-age=60, stale-if-error=100\nage: 50", Some(110)),
        (
            "max-age=60, stale-if-error=100\nage: 18446744073709551615",
            None,
        ),
        ("stale-if-error=9999", Some(300)),
        ("stale-if-error=0", None),
        ("s-maxage=60", Some(60)),
        ("S-MaxAge=60, max-age=1, stale-if-error=\"10\"", Some(70)),
        // A directive that is repeated or invalid is read the stricter way.
        ("max-age=60, max-age=10, stale-if-error=100", Some(110)),
        ("max-age=10, max-age=60, stale-if-error=100", Some(110)),
        ("max-age=60, stale-if-error=100, stale-if-error=1", Some(61)),
        ("max-age=60, stale-if-error=1h", Some(60)),
        ("max-age=60, stale-if-error=+9", Some(60)),
        ("max-age=60, stale-if-error=\"9", Some(60)),
        ("max-age=x, stale-if-error=100", Some(100)),
        ("max-age=60, stale-if-error", Some(60)),
        ("max-age=60, s-maxage=0", None),
    ];
    for (directives, expected) in table {
        let response_headers = format!("cache-control: {directives}");
        assert_eq!(
            storable_seconds("", 200, &response_headers),
            expected,
            "{response_headers}"
        );
    }
}

#[test]
fn the_request_decides_whether_its_response_may_be_stored() {
    let table = [
        ("range: bytes=0-1", "", None),
        ("cache-control: no-store", "", None),
        ("authorization: Basic x", "", None),
        ("x-api-key: 7", "", None),
        ("authorization: Basic x", "cache-control: public", Some(300)),
        ("cookie: a=b", "cache-control: max-age=60", None),
        ("cookie: a=b", "cache-control: s-maxage=60", Some(60)),
    ];
    for (request, response_headers, expected) in table {
        assert_eq!(
            storable_seconds(request, 200, response_headers),
            expected,
            "{request} / {response_headers}"
        );
    }
}

#[test]
fn a_request_that_limits_the_age_to_0_receives_no_cached_response() {
    let table = [
        ("max-age=60", false),
        ("max-stale", false),
        ("max-stale=10", false),
        ("only-if-cached", false),
        ("no-cache", true),
        ("No-Store", true),
        ("max-age=0", true),
        ("max-stale=0", true),
        ("stale-if-error=0", true),
        ("stale-if-error=x", true),
    ];
    for (directives, expected) in table {
        let mut request = Headers::default();
        request.insert(header::CACHE_CONTROL, directives);
        assert_eq!(forbids_cached(&request), expected, "{directives}");
    }
}
