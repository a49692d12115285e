use http::StatusCode;

use super::*;

fn head(status: u16, version: Version, fields: &[(&str, &str)]) -> ResponseHead {
    let status = StatusCode::from_u16(status).expect("a valid status");
    let mut head = ResponseHead::new(status);
    head.version = version;
    for (name, value) in fields {
        head.headers.append(name, value);
    }
    head.framing = BodyFraming::from_headers(&head.headers);
    head
}

/// Returns how the end of a body is found, in words.
fn framing(method: &Method, head: &ResponseHead) -> Option<String> {
    Some(match BodyReader::from_response(method, head).ok()? {
        BodyReader::Length(length) => length.to_string(),
        BodyReader::Chunked(_) => "chunked".to_owned(),
        BodyReader::UntilClose { .. } => "until close".to_owned(),
    })
}

#[test]
fn the_framing_of_a_response_follows_rfc_9112_section_6_3() {
    const LENGTH: (&str, &str) = ("content-length", "5");
    const CHUNKED: (&str, &str) = ("transfer-encoding", "chunked");
    let (get, new, old) = (Method::GET, Version::HTTP_11, Version::HTTP_10);
    let table: [(&Method, ResponseHead, Option<&str>); 13] = [
        (&get, head(200, new, &[LENGTH]), Some("5")),
        (&get, head(200, new, &[CHUNKED]), Some("chunked")),
        (&get, head(200, new, &[]), Some("until close")),
        (&get, head(200, new, &[LENGTH, CHUNKED]), Some("chunked")),
        (&Method::HEAD, head(200, new, &[LENGTH]), Some("0")),
        (&Method::HEAD, head(200, new, &[CHUNKED]), Some("0")),
        (&get, head(204, new, &[LENGTH]), Some("0")),
        (&get, head(304, new, &[CHUNKED]), Some("0")),
        (&get, head(200, old, &[]), Some("until close")),
        (&get, head(200, old, &[CHUNKED]), None),
        (&get, head(200, new, &[("transfer-encoding", "gzip")]), None),
        (&get, head(200, new, &[("content-length", "5, 6")]), None),
        (&get, head(204, new, &[("content-length", "x")]), None),
    ];
    for (method, head, expected) in table {
        assert_eq!(
            framing(method, &head).as_deref(),
            expected,
            "{method} {head:?}"
        );
    }
}

#[test]
fn a_body_with_a_length_ends_after_it_and_never_before() {
    let mut reader = BodyReader::Length(5);
    let mut input = BytesMut::from(&b"hel"[..]);
    assert_eq!(
        reader.read(&mut input, false),
        Ok(BodyProgress::Data("hel".into()))
    );
    assert_eq!(reader.read(&mut input, false), Ok(BodyProgress::NeedsInput));
    assert_eq!(reader.read(&mut input, true), Err(InvalidMessage));
    input.extend_from_slice(b"loNEXT");
    assert_eq!(
        reader.read(&mut input, false),
        Ok(BodyProgress::Data("lo".into()))
    );
    assert!(reader.is_done());
    assert_eq!(reader.read(&mut input, true), Ok(BodyProgress::Done));
    assert_eq!(&input[..], b"NEXT", "the bytes after the body remain");
}

#[test]
fn a_chunked_body_that_ends_early_is_an_error() {
    let mut reader = BodyReader::Chunked(ChunkDecoder::default());
    let mut input = BytesMut::from(&b"5\r\nhello\r\n"[..]);
    assert_eq!(
        reader.read(&mut input, true),
        Ok(BodyProgress::Data("hello".into()))
    );
    assert_eq!(reader.read(&mut input, true), Err(InvalidMessage));
    assert!(!reader.is_done());
}

#[test]
fn a_body_until_the_close_ends_with_the_connection() {
    let mut reader = BodyReader::until_close();
    let mut input = BytesMut::from(&b"hello"[..]);
    assert_eq!(
        reader.read(&mut input, true),
        Ok(BodyProgress::Data("hello".into()))
    );
    assert_eq!(reader.read(&mut input, false), Ok(BodyProgress::NeedsInput));
    assert!(!reader.is_done());
    assert_eq!(reader.read(&mut input, true), Ok(BodyProgress::Done));
    assert!(reader.is_done());
}
