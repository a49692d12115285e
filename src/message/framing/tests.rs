use http::HeaderName;

use super::*;

fn headers(name: &HeaderName, values: &[&str]) -> Headers {
    let mut headers = Headers::default();
    for value in values {
        headers.append(name, value);
    }
    headers
}

#[test]
fn a_content_length_is_one_decimal_number() {
    let table = [
        (&[][..], Ok(None)),
        (&["0"], Ok(Some(0))),
        (&["5"], Ok(Some(5))),
        (&["005"], Ok(Some(5))),
        (&[" 5 "], Ok(Some(5))),
        (&["5", "5"], Ok(Some(5))),
        (&["5, 5", "05"], Ok(Some(5))),
        (&["9223372036854775807"], Ok(Some(u64::MAX / 2))),
        (&["9223372036854775808"], Err(InvalidFraming)),
        (&["99999999999999999999999"], Err(InvalidFraming)),
        (&["5", "6"], Err(InvalidFraming)),
        (&["5,"], Err(InvalidFraming)),
        (&[""], Err(InvalidFraming)),
        (&["+5"], Err(InvalidFraming)),
        (&["0x5"], Err(InvalidFraming)),
        (&["5 5"], Err(InvalidFraming)),
    ];
    for (values, expected) in table {
        let headers = headers(&header::CONTENT_LENGTH, values);
        assert_eq!(content_length(&headers), expected, "{values:?}");
    }
}

#[test]
fn the_only_transfer_coding_is_chunked_once() {
    let table = [
        (&[][..], Ok(false)),
        (&["chunked"], Ok(true)),
        (&[" Chunked"], Ok(true)),
        (&["gzip"], Err(InvalidFraming)),
        (&["gzip, chunked"], Err(InvalidFraming)),
        (&["chunked, chunked"], Err(InvalidFraming)),
        (&["chunked", "chunked"], Err(InvalidFraming)),
        (&["chunked;a=b"], Err(InvalidFraming)),
        (&[""], Err(InvalidFraming)),
    ];
    for (values, expected) in table {
        let headers = headers(&header::TRANSFER_ENCODING, values);
        assert_eq!(is_chunked(&headers), expected, "{values:?}");
    }
}
