use crate::control::health::grpc_check::*;

#[test]
fn check_requests_are_encoded_as_health_check_messages() {
    assert_eq!(&encode_request("").expect("short")[..], [0, 0, 0, 0, 0]);
    assert_eq!(
        &encode_request("ab").expect("short")[..],
        [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']
    );
    assert!(encode_request(&"x".repeat(126)).is_err());
}

#[test]
fn a_check_response_is_decoded_or_rejected() {
    let table: [(&[u8], Option<u8>); 7] = [
        (&[0, 0, 0, 0, 2, 8, 1], Some(1)),
        (&[0, 0, 0, 0, 2, 8, 2], Some(2)),
        (&[0, 0, 0, 0, 0], Some(0)),
        (&[1, 0, 0, 0, 2, 8, 1], None),
        (&[0, 0, 0, 0, 3, 8, 1], None),
        (&[0, 0, 0], None),
        (&[0, 0, 0, 0, 2, 16, 1], None),
    ];
    for (frame, expected) in table {
        assert_eq!(decode_serving_status(frame), expected, "{frame:?}");
    }
}
