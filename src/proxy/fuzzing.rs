//! Entry points for the fuzz targets of the message parsers, which are not public otherwise.
//!
//! Each function checks what must hold for any input, and panics if it does not hold.

use bytes::BytesMut;

use crate::proxy::{
    request::host_port,
    wire::http1::{
        InvalidMessage,
        body_reader::{BodyProgress, BodyReader},
        head::{self, HeadLimits},
    },
};

const HEAD_LIMITS: HeadLimits = HeadLimits {
    max_bytes: 8 << 10,
    max_fields: 64,
};

/// Head of a request whose body is chunked.
const CHUNKED_REQUEST: &[u8] = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";

/// Result of a parser: nothing yet, a value with the number of bytes that follow, or an error.
type Parsed = Option<Result<(String, usize), ()>>;

/// A head means the same whether its bytes arrive at once or one by one, and a head that is
/// accepted has no bare CR or LF.
pub fn check_heads(text: &[u8]) {
    let request = |input: &mut BytesMut| match head::take_request(input, HEAD_LIMITS) {
        Ok(head) => Ok(head.map(|head| format!("{head:?}"))),
        Err(_) => Err(()),
    };
    let response = |input: &mut BytesMut| match head::take_response(input) {
        Ok(head) => Ok(head.map(|head| format!("{head:?}"))),
        Err(_) => Err(()),
    };
    for parsed in [parse(text, request), parse(text, response)] {
        if let Some(Ok((_, rest))) = parsed {
            let head = String::from_utf8_lossy(&text[..text.len() - rest]);
            let lines = head.replace("\r\n", "");
            assert!(!lines.contains(['\r', '\n', '\0']), "{head:?}");
        }
    }
}

fn parse(text: &[u8], take: impl Fn(&mut BytesMut) -> Result<Option<String>, ()>) -> Parsed {
    let take_from = |pieces: &mut dyn Iterator<Item = &[u8]>| -> Parsed {
        let mut input = BytesMut::new();
        while let Some(piece) = pieces.next() {
            input.extend_from_slice(piece);
            match take(&mut input) {
                Ok(None) => {}
                Ok(Some(head)) => {
                    let rest: usize = pieces.map(<[u8]>::len).sum();
                    return Some(Ok((head, input.len() + rest)));
                }
                Err(()) => return Some(Err(())),
            }
        }
        None
    };
    let at_once = take_from(&mut std::iter::once(text));
    let one_by_one = take_from(&mut text.chunks(1));
    // An error may be found earlier or later, but never instead of a head.
    match (&at_once, &one_by_one) {
        (Some(Ok(_)), _) | (_, Some(Ok(_))) => assert_eq!(at_once, one_by_one),
        _ => {}
    }
    at_once
}

/// A chunked body means the same whether its bytes arrive at once or one by one, and the end of
/// the input never completes it.
pub fn check_chunks(text: &[u8]) {
    let decode = |piece_length: usize| -> Result<Option<(Vec<u8>, usize)>, InvalidMessage> {
        let mut request = BytesMut::from(CHUNKED_REQUEST);
        let head = head::take_request(&mut request, HEAD_LIMITS);
        let Ok(Some(head)) = head else {
            unreachable!("the head is valid");
        };
        let mut body = BodyReader::from_request(&head)?;
        let (mut input, mut data) = (BytesMut::new(), Vec::new());
        let mut pieces = text.chunks(piece_length);
        while let Some(piece) = pieces.next() {
            input.extend_from_slice(piece);
            loop {
                match body.read(&mut input, false)? {
                    BodyProgress::Data(part) => data.extend_from_slice(&part),
                    BodyProgress::NeedsInput => break,
                    BodyProgress::Done => {
                        let rest: usize = pieces.map(<[u8]>::len).sum();
                        return Ok(Some((data, input.len() + rest)));
                    }
                }
            }
        }
        assert!(
            body.read(&mut input, true).is_err(),
            "an incomplete body ends"
        );
        Ok(None)
    };
    if text.is_empty() {
        return;
    }
    assert_eq!(decode(text.len()), decode(1));
}

/// A host that is accepted has nothing that another implementation could read differently.
pub fn check_authority(text: &str) {
    if host_port::is_valid(text) {
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"/?#@\\\"<>^`{|}".contains(&byte);
        assert!(text.bytes().all(is_plain), "{text:?}");
        let without_brackets = text.trim_start_matches('[');
        assert!(!without_brackets.contains('['), "{text:?}");
        assert!(host_port::are_equal(text, &text.to_uppercase(), "http"));
    }
}
