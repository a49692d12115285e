use super::*;

/// Parses a head that arrives in pieces of this size, and returns what remains of the input.
fn parse(
    text: &[u8],
    piece_length: usize,
) -> Result<Option<(ResponseHead, BytesMut)>, InvalidMessage> {
    let mut input = BytesMut::new();
    let mut pieces = text.chunks(piece_length);
    while let Some(piece) = pieces.next() {
        input.extend_from_slice(piece);
        if let Some(head) = take_response(&mut input)? {
            pieces.for_each(|piece| input.extend_from_slice(piece));
            return Ok(Some((head, input)));
        }
    }
    Ok(None)
}

#[test]
fn a_head_is_the_same_however_its_bytes_arrive() {
    let text = b"HTTP/1.1 404 Gone Fishing\r\nA: b\r\nset-cookie: 1\r\nSet-Cookie: 2\r\n\
                 empty:\r\nspaced: \t x y \t\r\nutf: \xc3\xbc\r\n\r\nbody";
    for piece_length in 1..=text.len() {
        let (head, rest) = parse(text, piece_length)
            .expect("the head is valid")
            .expect("the head is complete");
        assert_eq!(
            (head.status.as_u16(), head.version),
            (404, Version::HTTP_11)
        );
        assert_eq!(head.reason_phrase(), "Gone Fishing");
        assert_eq!(head.headers.len(), 6);
        let cookies: Vec<&[u8]> = head.headers.get_all("set-cookie").collect();
        assert_eq!(cookies, [b"1", b"2"]);
        assert_eq!(head.headers.get("empty"), Some(&b""[..]));
        assert_eq!(head.headers.get_str("spaced"), Some("x y"));
        assert_eq!(head.headers.get("utf"), Some(&b"\xc3\xbc"[..]));
        assert_eq!(&rest[..], b"body");
    }
}

#[test]
fn malformed_heads_are_rejected() {
    let invalid: [&[u8]; 22] = [
        b"SSH-2.0-OpenSSH\r\n",
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.2 200 OK\r\n\r\n",
        b"http/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\n\n",
        b"HTTP/1.1 200 OK\r\na: b\n\r\n",
        b"HTTP/1.1 200 OK\r\na: b\r\n\n",
        b"HTTP/1.1 200 OK\r\na : b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n a: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na b: c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nabc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na: b\0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na: b\x01\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na: b\rc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na\xff: b\r\n\r\n",
    ];
    for text in invalid {
        for piece_length in [1, text.len()] {
            assert_eq!(
                parse(text, piece_length).err(),
                Some(InvalidMessage),
                "{} in pieces of {piece_length}",
                text.escape_ascii()
            );
        }
    }
}

#[test]
fn the_number_of_fields_and_the_size_of_a_head_are_bounded() {
    let with_fields = |count: usize| {
        [
            b"HTTP/1.1 200 OK\r\n",
            &b"a: b\r\n".repeat(count)[..],
            b"\r\n",
        ]
        .concat()
    };
    assert!(parse(&with_fields(256), 4096).is_ok_and(|head| head.is_some()));
    assert_eq!(parse(&with_fields(257), 4096).err(), Some(InvalidMessage));
    let endless = [&b"HTTP/1.1 200 OK\r\na: "[..], &vec![b'b'; 300_000]].concat();
    assert_eq!(parse(&endless, 65_536).err(), Some(InvalidMessage));
}

const REQUEST_LIMITS: HeadLimits = HeadLimits {
    max_bytes: 1_000,
    max_fields: 100,
};

/// Parses a request head that arrives in pieces of this size.
fn parse_request(
    text: &[u8],
    piece_length: usize,
) -> Result<Option<(RequestHead, BytesMut)>, InvalidRequestHead> {
    let mut input = BytesMut::new();
    let mut pieces = text.chunks(piece_length);
    while let Some(piece) = pieces.next() {
        input.extend_from_slice(piece);
        if let Some(head) = take_request(&mut input, REQUEST_LIMITS)? {
            pieces.for_each(|piece| input.extend_from_slice(piece));
            return Ok(Some((head, input)));
        }
    }
    Ok(None)
}

#[test]
fn a_request_head_is_the_same_however_its_bytes_arrive() {
    let targets: [&[u8]; 8] = [
        b"/",
        b"/a/b?c=d&e",
        b"*",
        b"http://a:80/b",
        b"/%00%zz",
        b"/\"\\^{|}",
        b"/<`>",
        "/b\u{fc}cher".as_bytes(),
    ];
    for target in targets {
        let text = [
            b"\r\nPATCH ",
            target,
            b" HTTP/1.1\r\nHost: a\r\nX:  y \r\n\r\nGET",
        ]
        .concat();
        for piece_length in 1..=text.len() {
            let (head, rest) = parse_request(&text, piece_length)
                .unwrap_or_else(|error| panic!("{}: {error:?}", text.escape_ascii()))
                .expect("the head is complete");
            assert_eq!(head.method, "PATCH");
            assert_eq!(&head.target[..], target);
            assert_eq!(head.version, Version::HTTP_11);
            assert_eq!(
                (head.headers.get_str("host"), head.headers.get_str("x")),
                (Some("a"), Some("y"))
            );
            assert_eq!(&rest[..], b"GET");
        }
    }
}

#[test]
fn malformed_request_heads_are_rejected_and_never_repaired() {
    let invalid: [&[u8]; 30] = [
        b"\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        b"\nGET / HTTP/1.1\r\n\r\n",
        b" GET / HTTP/1.1\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"GET /  HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1 \r\n\r\n",
        b"GET\t/ HTTP/1.1\r\n\r\n",
        b"GET /a b HTTP/1.1\r\n\r\n",
        b"GET /a\tb HTTP/1.1\r\n\r\n",
        b"GET /a\0b HTTP/1.1\r\n\r\n",
        b"GET /a\x7fb HTTP/1.1\r\n\r\n",
        b"GET /a\x01b HTTP/1.1\r\n\r\n",
        b"GET /a#b HTTP/1.1\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET HTTP/1.1\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET / HTTP/1\r\n\r\n",
        b"GET / http/1.1\r\n\r\n",
        b"GE T / HTTP/1.1\r\n\r\n",
        b"G@T / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\n\n",
        b"GET / HTTP/1.1\r\na: b\n\r\n",
        b"GET / HTTP/1.1\r\na : b\r\n\r\n",
        b"GET / HTTP/1.1\r\n a: b\r\n\r\n",
        b"GET / HTTP/1.1\r\na: b\r\n c\r\n\r\n",
        b"GET / HTTP/1.1\r\n: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nab\r\n\r\n",
        b"GET / HTTP/1.1\r\na: b\0\r\n\r\n",
        b"GET / HTTP/1.1\r\na: b\rc\r\n\r\n",
        b"GET / HTTP/1.1\r\na\"b: c\r\n\r\n",
    ];
    for text in invalid {
        for piece_length in [1, text.len()] {
            assert_eq!(
                parse_request(text, piece_length).err(),
                Some(InvalidRequestHead::Malformed),
                "{} in pieces of {piece_length}",
                text.escape_ascii()
            );
        }
    }
    let long_method = [&b"G".repeat(65)[..], b" / HTTP/1.1\r\n\r\n"].concat();
    assert!(parse_request(&long_method, 1).is_err());
}

#[test]
fn a_request_head_has_a_maximum_size_and_number_of_fields() {
    let with_field = |length: usize| {
        [
            b"GET / HTTP/1.1\r\na: ",
            &b"b".repeat(length)[..],
            b"\r\n\r\n",
        ]
        .concat()
    };
    let overhead = with_field(0).len();
    assert!(parse_request(&with_field(1_000 - overhead), 1).is_ok_and(|head| head.is_some()));
    for piece_length in [1, 4_096] {
        assert_eq!(
            parse_request(&with_field(1_001 - overhead), piece_length).err(),
            Some(InvalidRequestHead::TooLarge)
        );
    }
    let with_fields = |count| {
        let fields = b"a:\r\n".repeat(count);
        [b"GET / HTTP/1.1\r\n", &fields[..], b"\r\n"].concat()
    };
    assert!(parse_request(&with_fields(100), 1_000).is_ok_and(|head| head.is_some()));
    let result = parse_request(&with_fields(101), 1_000);
    assert_eq!(result.err(), Some(InvalidRequestHead::TooLarge));
}
