use crate::{resilience::some_instant, state::instance::replicas::*};

#[test]
fn an_endpoint_at_a_listener_of_this_host_is_recognized_as_own() {
    let table = [
        ("127.0.0.1:80", "127.0.0.1:80", true),
        ("127.0.0.1:80", "127.0.0.1:81", false),
        ("127.0.0.1:80", "127.0.0.2:80", false),
        ("0.0.0.0:80", "127.0.0.1:80", true),
        ("[::]:80", "127.0.0.1:80", true),
        // Reserved for documentation (RFC 5737), so no host has this address.
        ("0.0.0.0:80", "192.0.2.1:80", false),
    ];
    for (own_addresses, address, expected) in table {
        let endpoint = EndpointState::new(
            EndpointAddress::Tcp(address.parse().expect("an address")),
            0,
            Arc::default(),
            false,
            some_instant(),
        );
        assert_eq!(
            is_own_listener(&[own_addresses.parse().expect("an address")], &endpoint),
            expected,
            "{address} at {own_addresses}"
        );
    }
}
