use crate::proxy::request::client_ip::*;

#[test]
fn client_ip_is_the_last_forwarded_address_not_of_a_trusted_proxy() {
    let table: [(&str, &[&str], &str); 12] = [
        ("9.9.9.9", &[], "9.9.9.9"),
        ("9.9.9.9", &["1.1.1.1"], "9.9.9.9"),
        ("10.0.0.1", &[], "10.0.0.1"),
        ("10.0.0.1", &["1.1.1.1"], "1.1.1.1"),
        ("10.0.0.1", &["6.6.6.6, 1.1.1.1"], "1.1.1.1"),
        ("10.0.0.1", &["6.6.6.6, 1.1.1.1 ,10.0.0.9"], "1.1.1.1"),
        ("10.0.0.1", &["6.6.6.6", "1.1.1.1", "10.0.0.9"], "1.1.1.1"),
        ("10.0.0.1", &["10.0.0.7, 10.0.0.8"], "10.0.0.7"),
        ("10.0.0.1", &["1.1.1.1, unknown"], "10.0.0.1"),
        ("10.0.0.1", &["1.1.1.1:4711"], "1.1.1.1"),
        ("::ffff:10.0.0.1", &["[2001:db8::1]:80"], "2001:db8::1"),
        ("10.0.0.1", &["[2001:db8::1]"], "2001:db8::1"),
    ];
    let trusted = ["10.0.0.0/8".parse().expect("a range")];
    for (peer, forwarded_for, expected) in table {
        let mut headers = Headers::default();
        for line in forwarded_for {
            headers.append(FORWARDED_FOR, line);
        }
        let (peer, expected): (IpAddr, IpAddr) = (
            peer.parse().expect("an address"),
            expected.parse().expect("an address"),
        );
        assert_eq!(
            resolve(peer, &headers, &trusted),
            expected,
            "{peer} {forwarded_for:?}"
        );
        assert_eq!(resolve(peer, &headers, &[]), peer.to_canonical());
    }
}
