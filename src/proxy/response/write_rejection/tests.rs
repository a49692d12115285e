use crate::proxy::response::write_rejection::*;

#[test]
fn a_name_cannot_add_a_field_or_end_a_quoted_string() {
    let table = [
        ("breaker_open:app", "breaker_open:app"),
        ("shed:a\r\nset-cookie: b", "shed:a??set-cookie: b"),
        ("x:\"; y", "x:?; y"),
        ("x:\\", "x:?"),
        ("x:\u{fc}\0\u{7f}", "x:???"),
    ];
    for (text, expected) in table {
        assert_eq!(to_quotable(text.to_owned()), expected);
    }
}
