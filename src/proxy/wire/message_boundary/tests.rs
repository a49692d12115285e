use crate::proxy::wire::message_boundary::*;

/// Checks the byte counts after which the stream can end, for several chunk sizes.
#[track_caller]
fn check(make: fn() -> MessageFraming, bytes: &[u8], expected: &[usize]) {
    for piece in [1, 2, 3, 7, bytes.len()] {
        let mut framing = make();
        let mut boundaries = Vec::new();
        let mut bytes_observed = 0;
        for chunk in bytes.chunks(piece) {
            framing.observe(chunk);
            bytes_observed += chunk.len();
            if framing.is_at_boundary() {
                boundaries.push(bytes_observed);
            }
        }
        let expected_boundaries_bytes: Vec<usize> = expected
            .iter()
            .copied()
            .filter(|end| end % piece == 0 || *end == bytes.len())
            .collect();
        assert_eq!(
            boundaries, expected_boundaries_bytes,
            "in pieces of {piece}"
        );
    }
}

#[test]
fn a_websocket_stream_is_at_a_boundary_only_between_frames() {
    let mut bytes = vec![0x81, 5];
    bytes.extend(b"hello");
    bytes.extend([0x82, 0x85, 1, 2, 3, 4]);
    bytes.extend(b"world");
    bytes.extend([0x89, 0]);
    bytes.extend([0x82, 126, 1, 0]);
    bytes.extend([0x55; 256]);
    bytes.extend([0x82, 127, 0, 0, 0, 0, 0, 1, 0, 1]);
    bytes.extend(vec![0xaa; 65_537]);
    let boundaries = [7, 18, 20, 280, 65_827];
    check(MessageFraming::websocket, &bytes, &boundaries);
}

#[test]
fn a_grpc_stream_is_at_a_boundary_only_between_messages_and_counts_them() {
    let bytes = [0, 0, 0, 0, 2, 8, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 9];
    check(MessageFraming::grpc, &bytes, &[7, 12, 18]);
    let mut framing = MessageFraming::grpc();
    framing.observe(&bytes[..14]);
    assert_eq!(
        (framing.started_messages(), framing.is_at_boundary()),
        (3, false)
    );
}

#[test]
fn an_event_stream_is_at_a_boundary_only_after_an_empty_line() {
    check(
        MessageFraming::event_stream,
        b"data: a\n\ndata: b\ndata: c\n\n",
        &[9, 26],
    );
    check(
        MessageFraming::event_stream,
        b"data: a\r\n\r\n: x\r\n\r\n",
        &[10, 11, 17, 18],
    );
    check(
        MessageFraming::event_stream,
        b"data: a\r\rid: 1\r\r",
        &[9, 16],
    );
    assert!(
        MessageFraming::event_stream().is_at_boundary(),
        "nothing has begun"
    );
}
