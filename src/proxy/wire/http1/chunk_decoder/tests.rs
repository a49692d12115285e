use super::*;

/// Decodes a whole body that arrives in pieces of this size.
fn decode(body: &[u8], piece_length: usize) -> Result<Option<Vec<u8>>, InvalidMessage> {
    let mut decoder = ChunkDecoder::default();
    let (mut input, mut data) = (BytesMut::new(), Vec::new());
    for piece in body.chunks(piece_length) {
        input.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut input)? {
                BodyProgress::Data(part) => data.extend_from_slice(&part),
                BodyProgress::NeedsInput => break,
                BodyProgress::Done => {
                    assert!(input.is_empty(), "bytes after the body");
                    return Ok(Some(data));
                }
            }
        }
    }
    Ok(None)
}

#[test]
fn a_body_is_the_same_however_its_bytes_arrive() {
    let table: [(&[u8], &[u8]); 9] = [
        (b"0\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", b"hello world"),
        (b"0005\r\nhello\r\n000\r\n\r\n", b"hello"),
        (b"a\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n"),
        (b"1;a;b=c;d=\"e;\\\"f\"\r\nx\r\n0;last\r\n\r\n", b"x"),
        (b"1\r\nx\r\n0\r\nchecksum: 1\r\nexpires: 0\r\n\r\n", b"x"),
    ];
    for (body, expected) in table {
        for piece_length in 1..=body.len() {
            assert_eq!(
                decode(body, piece_length),
                Ok(Some(expected.to_vec())),
                "{} in pieces of {piece_length}",
                body.escape_ascii()
            );
        }
    }
}

#[test]
fn a_body_that_is_not_exactly_as_the_grammar_defines_it_is_invalid() {
    let invalid: [&[u8]; 36] = [
        b"\r\n",
        b"\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
        b"5\t\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5h\r\nhello\r\n0\r\n\r\n",
        b"g\r\nhello\r\n0\r\n\r\n",
        b"00000000000000005\r\nhello\r\n0\r\n\r\n",
        b"fffffffffffffffff\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhellox\r\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhello\r\r\n0\r\n\r\n",
        b"5\r\r\nhello\r\n0\r\n\r\n",
        b"5;\r\nhello\r\n0\r\n\r\n",
        b"5 ;a\r\nhello\r\n0\r\n\r\n",
        b"5; a\r\nhello\r\n0\r\n\r\n",
        b"5;a \r\nhello\r\n0\r\n\r\n",
        b"5;a= b\r\nhello\r\n0\r\n\r\n",
        b"5;a=\r\nhello\r\n0\r\n\r\n",
        b"5;a=\"b\r\nhello\r\n0\r\n\r\n",
        b"5;a=\"b\"c\r\nhello\r\n0\r\n\r\n",
        b"5;a\0\r\nhello\r\n0\r\n\r\n",
        b"5;a=\"\n\"\r\nhello\r\n0\r\n\r\n",
        b"5;a=\"\x01\"\r\nhello\r\n0\r\n\r\n",
        b"5;\xff\r\nhello\r\n0\r\n\r\n",
        b"5,a\r\nhello\r\n0\r\n\r\n",
        b"0\r\nx\r\n\r\n",
        b"0\r\na b: c\r\n\r\n",
        b"0\r\na: b\n\r\n",
        b"0\r\na: b\r\n c\r\n\r\n",
        b"0\r\n\rx",
    ];
    for body in invalid {
        for piece_length in [1, body.len()] {
            assert_eq!(
                decode(body, piece_length),
                Err(InvalidMessage),
                "{} in pieces of {piece_length}",
                body.escape_ascii()
            );
        }
    }
}

#[test]
fn an_incomplete_body_is_never_done() {
    let body = b"5;a=b\r\nhello\r\n0\r\nx: y\r\n\r\n";
    for length in 0..body.len() {
        assert_eq!(decode(&body[..length], 1), Ok(None), "{length}");
    }
}

#[test]
fn extensions_and_trailers_are_bounded() {
    let long_extension = [b"1;", &[b'a'; 5_000][..], b"\r\nx\r\n0\r\n\r\n"].concat();
    assert_eq!(decode(&long_extension, 4096), Err(InvalidMessage));
    let many_extensions = [&b"1;abc\r\nx\r\n".repeat(2_000)[..], b"0\r\n\r\n"].concat();
    assert_eq!(decode(&many_extensions, 4096), Err(InvalidMessage));
    let endless_line = [b'1'; 10_000];
    assert_eq!(decode(&endless_line, 1), Err(InvalidMessage));
    let endless_trailer = [&b"0\r\na: "[..], &[b'b'; 70_000]].concat();
    assert_eq!(decode(&endless_trailer, 4096), Err(InvalidMessage));
}
