use crate::proxy::attempt::endpoint_selection::*;

#[test]
fn a_cookie_is_found_by_its_whole_name() {
    let table: [(&[u8], Option<&[u8]>); 6] = [
        (b"id=7", Some(b"7")),
        (b"a=1; id=7; b=2", Some(b"7")),
        (b"a=1;id=7=8", Some(b"7=8")),
        (b"xid=7", None),
        (b"id", None),
        (b"", None),
    ];
    for (cookies, expected) in table {
        assert_eq!(
            cookie_value(cookies, b"id"),
            expected,
            "{}",
            String::from_utf8_lossy(cookies)
        );
    }
}
