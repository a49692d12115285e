use crate::{policy::snapshot::SectionOrigin, proxy::response::stale::*};

fn parse_headers(text: &'static str) -> HeaderMap {
    let pairs = text.split('\n').filter_map(|line| line.split_once(": "));
    pairs
        .map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        })
        .collect()
}

/// Returns the seconds for which a response may be served stale, or `None` if it must not be
/// stored.
fn storable_seconds(
    request: &'static str,
    status: u16,
    response_headers: &'static str,
) -> Option<u64> {
    let spec = StaleIfErrorSpec {
        mode: Mode::Enforce,
        max_age: Duration::from_secs(300),
        max_entry_bytes: 100,
        max_bytes: 1_000,
        name: "app".into(),
        origin: SectionOrigin::BuiltIn,
    };
    let mut head = ResponseHeader::build(status, None).expect("a status");
    for (name, value) in &parse_headers(response_headers) {
        head.append_header(name.clone(), value).expect("a value");
    }
    let request = parse_headers(request);
    let allowance = stale_allowance(&spec, &head)
        .filter(|allowance| is_storable_for(&request, &head, allowance.is_public))?;
    vary_values(&request, &head.headers).map(|_| allowance.lifetime.as_secs())
}

#[test]
fn only_responses_storable_by_a_shared_cache_are_stored() {
    let table = [
        ("", 200, "", Some(300)),
        ("", 200, "cache-control: max-age=60", Some(300)),
        (
            "",
            200,
            "cache-control: max-age=60, stale-if-error=100",
            Some(160),
        ),
        (
            "",
            200,
            "cache-control: max-age=60, stale-if-error=100\nage: 50",
            Some(110),
        ),
        ("", 200, "cache-control: stale-if-error=9999", Some(300)),
        ("", 200, "cache-control: stale-if-error=0", None),
        ("", 200, "cache-control: s-maxage=60", Some(60)),
        (
            "",
            200,
            "cache-control: S-MaxAge=60, max-age=1, stale-if-error=\"10\"",
            Some(70),
        ),
        ("", 200, "cache-control: private", None),
        ("", 200, "cache-control: max-age=60, No-Store", None),
        ("", 200, "cache-control: no-cache", None),
        (
            "",
            200,
            "cache-control: must-revalidate, stale-if-error=60",
            None,
        ),
        ("", 200, "cache-control: proxy-revalidate", None),
        ("", 200, "set-cookie: a=b", None),
        ("", 200, "vary: *", None),
        ("", 200, "vary: accept, accept-language", Some(300)),
        ("", 200, "content-length: 100", Some(300)),
        ("", 200, "content-length: 101", None),
        ("", 206, "", None),
        ("", 203, "", None),
        ("", 404, "", None),
        ("range: bytes=0-1", 200, "", None),
        ("cache-control: no-store", 200, "", None),
        ("authorization: Basic x", 200, "", None),
        ("x-api-key: 7", 200, "", None),
        (
            "",
            200,
            "cache-control: max-age=60, stale-if-error=100\nage: 18446744073709551615",
            None,
        ),
        (
            "authorization: Basic x",
            200,
            "cache-control: public",
            Some(300),
        ),
        ("cookie: a=b", 200, "cache-control: max-age=60", None),
        ("cookie: a=b", 200, "cache-control: s-maxage=60", Some(60)),
    ];
    for (request, status, answer, expected) in table {
        assert_eq!(
            storable_seconds(request, status, answer),
            expected,
            "{request} / {status} {answer}"
        );
    }
}
