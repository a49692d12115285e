use http::StatusCode;

use crate::proxy::request::classify::*;

#[test]
fn retry_after_is_read_as_seconds_and_as_a_date() {
    // Sun, 06 Nov 1994 08:49:37 GMT
    let wall_clock = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
    let table = [
        (503, "3", Some(3)),
        (429, " 120 ", Some(120)),
        (503, "99999999999999999999999", Some(u64::MAX)),
        (503, "Sun, 06 Nov 1994 08:49:40 GMT", Some(3)),
        (503, "Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
        (503, "-1", None),
        (503, "soon", None),
        (503, "", None),
        (502, "3", None),
    ];
    for (status, value, expected) in table {
        let status = StatusCode::from_u16(status).expect("a status");
        let mut response = ResponseHead::new(status);
        response.headers.insert("retry-after", value);
        assert_eq!(
            parse_retry_after(&response, || wall_clock).map(|wait| wait.as_secs()),
            expected,
            "{status} {value}"
        );
    }
}
