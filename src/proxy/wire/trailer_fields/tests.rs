use http::HeaderValue;

use crate::proxy::wire::trailer_fields::*;

#[test]
fn the_list_is_sorted_for_the_search() {
    assert!(FORBIDDEN.is_sorted());
}

#[test]
fn forbidden_fields_are_removed_and_others_remain() {
    let names = [
        "grpc-status",
        "content-length",
        "x-outrigger-reason",
        "a\"b",
        "etag",
    ];
    let trailers = names.map(|name| {
        (
            HeaderName::from_static(name),
            HeaderValue::from_static("value"),
        )
    });
    let allowed = without_forbidden(HeaderMap::from_iter(trailers)).unwrap_or_default();
    let remaining: Vec<_> = allowed.keys().map(HeaderName::as_str).collect();
    assert_eq!(remaining, ["grpc-status", "etag"]);
}

#[test]
fn trailers_without_an_allowed_field_are_no_trailers() {
    assert_eq!(without_forbidden(HeaderMap::new()), None);
    let host = (
        HeaderName::from_static("host"),
        HeaderValue::from_static("a"),
    );
    assert_eq!(without_forbidden(HeaderMap::from_iter([host])), None);
}
