use crate::proxy::wire::trailer_fields::*;

fn trailers(names: &[&str]) -> Headers {
    let mut trailers = Headers::default();
    for name in names {
        trailers.append(name, "value");
    }
    trailers
}

#[test]
fn the_list_is_sorted_for_the_search() {
    assert!(FORBIDDEN.is_sorted());
}

#[test]
fn forbidden_fields_are_removed_and_others_remain() {
    let names = [
        "Grpc-Status",
        "Content-Length",
        "x-outrigger-reason",
        "a\"b",
        "etag",
    ];
    let trailers = trailers(&names);
    let allowed = without_forbidden(&trailers).unwrap_or_default();
    let remaining: Vec<_> = allowed.iter().map(|(name, _)| name).collect();
    assert_eq!(remaining, ["Grpc-Status", "etag"]);
}

#[test]
fn trailers_without_an_allowed_field_are_no_trailers() {
    assert!(without_forbidden(&Headers::default()).is_none());
    assert!(without_forbidden(&trailers(&["host"])).is_none());
}
