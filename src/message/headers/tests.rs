use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;

use super::*;

/// Parses lines as a head. The fields refer to the text.
fn received(text: &str) -> Headers {
    let lines: Vec<_> = text.split_inclusive("\r\n").collect();
    let fields = lines.iter().map(|line| {
        let (name, value) = line.split_once(':').expect("a colon");
        (name.as_bytes(), value.trim().as_bytes())
    });
    let headers = Headers::locate(text.as_bytes(), fields).expect("they are parts of it");
    headers.with_buffer(Bytes::copy_from_slice(text.as_bytes()))
}

fn written(headers: &Headers) -> String {
    let mut out = Vec::new();
    headers.write_http1(&mut out);
    String::from_utf8(out).expect("it is text")
}

#[test]
fn received_fields_are_written_as_they_arrived_except_for_blanks_around_the_value() {
    let text = "Host: shop\r\nX-One:1\r\nx-two: \t 2 \r\nACCEPT: */*\r\nVia: a\r\n";
    let expected = "Host: shop\r\nX-One: 1\r\nx-two: 2\r\nACCEPT: */*\r\nVia: a\r\n";
    assert_eq!(written(&received(text)), expected);
}

#[test]
fn names_are_compared_without_case() {
    let headers = received("Set-Cookie: a\r\nHOST: shop\r\nset-cookie: b\r\n");
    assert_eq!(headers.get("host"), Some(&b"shop"[..]));
    let cookies: Vec<_> = headers.get_all("set-cookie").collect();
    assert_eq!(cookies, [b"a", b"b"]);
    assert!(!headers.contains_key("hos") && !headers.contains_key("tosh"));
}

#[test]
fn an_inserted_field_takes_the_place_of_the_first_and_removes_the_others() {
    let mut headers = received("A: 1\r\nB: 2\r\na: 3\r\n");
    headers.insert("a", "4");
    headers.insert_number("c", 0);
    headers.insert_number("d", u64::MAX);
    headers.append("b", "5");
    let expected = "A: 4\r\nB: 2\r\nc: 0\r\nd: 18446744073709551615\r\nb: 5\r\n";
    assert_eq!(written(&headers), expected);
    headers.remove("B");
    assert_eq!(headers.get_all("b").count(), 0);
    assert_eq!(written(&headers.to_compact()), written(&headers));
}

#[test]
fn only_visible_ascii_is_text() {
    assert_eq!(as_text(b"a b\t~"), Some("a b\t~"));
    assert_eq!(as_text(b"\xc3\xbc"), None);
    assert_eq!(as_text(b""), Some(""));
}

/// Change of a list of fields.
#[derive(Debug, Clone)]
enum Change {
    Insert(&'static str, String),
    Append(&'static str, String),
    Remove(&'static str),
    DropNamed(&'static str),
}

const NAMES: [&str; 6] = ["a", "b", "host", "tosh", "x-request-id", "via"];

fn change() -> impl Strategy<Value = Change> {
    let name = || prop::sample::select(NAMES.to_vec());
    let value = || "[a-z ]{0,4}".prop_map(|value| value.trim().to_owned());
    prop_oneof![
        (name(), value()).prop_map(|(name, value)| Change::Insert(name, value)),
        (name(), value()).prop_map(|(name, value)| Change::Append(name, value)),
        name().prop_map(Change::Remove),
        name().prop_map(Change::DropNamed),
    ]
}

proptest! {
    #[test]
    fn the_list_behaves_like_a_header_map(
        changes in prop::collection::vec(change(), 0..20)
    ) {
        let mut headers = received("Host: shop\r\nA: 1\r\na:2\r\nX-Request-Id: 7\r\n");
        let mut map = HeaderMap::from(&headers);
        for change in changes {
            match change {
                Change::Insert(name, value) => {
                    headers.insert(name, &value);
                    map.insert(name, value.parse().expect("a value"));
                }
                Change::Append(name, value) => {
                    headers.append(name, &value);
                    map.append(name, value.parse().expect("a value"));
                }
                Change::Remove(name) => {
                    headers.remove(name);
                    map.remove(name);
                }
                Change::DropNamed(dropped) => {
                    let dropped_name = dropped.as_bytes();
                    headers = headers.filtered(|name| !name.eq_ignore_ascii_case(dropped_name));
                    map.remove(dropped);
                }
            }
        }
        prop_assert_eq!(&HeaderMap::from(&headers), &map);
        prop_assert_eq!(&HeaderMap::from(&Headers::from(&map)), &map);
        for name in NAMES {
            prop_assert_eq!(headers.get(name), map.get(name).map(HeaderValue::as_bytes));
            let values: Vec<_> = headers.get_all(name).collect();
            let expected: Vec<_> = map.get_all(name).iter().map(HeaderValue::as_bytes).collect();
            prop_assert_eq!(values, expected);
        }
    }
}
