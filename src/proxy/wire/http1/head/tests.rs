use super::*;

/// Parses a head that arrives in pieces of this size, and returns what remains of the input.
fn parse(
    text: &[u8],
    piece_length: usize,
) -> Result<Option<(ResponseHeader, BytesMut)>, InvalidMessage> {
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
        assert_eq!(head.get_reason_phrase(), Some("Gone Fishing"));
        assert_eq!(head.headers.len(), 6);
        let cookies: Vec<&[u8]> = head
            .headers
            .get_all("set-cookie")
            .iter()
            .map(HeaderValue::as_bytes)
            .collect();
        assert_eq!(cookies, [b"1", b"2"]);
        assert_eq!(head.headers["empty"], "");
        assert_eq!(head.headers["spaced"], "x y");
        assert_eq!(head.headers["utf"].as_bytes(), b"\xc3\xbc");
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
