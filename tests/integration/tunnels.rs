//! Upgrades to WebSocket and other protocols.

use crate::support::{ScriptedBackend, Sidecar, eventually, policy::policy};

const UPGRADE_REQUEST: &str = concat!(
    "GET /chat HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, Upgrade\r\n",
    "upgrade: websocket\r\nsec-websocket-key: x\r\n\r\n"
);
const UPGRADE_RESPONSE: &str = concat!(
    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n",
    "upgrade: websocket\r\nsec-websocket-accept: y\r\n\r\n"
);

#[test]
fn a_tunnel_forwards_every_byte_in_both_directions() {
    let backend = ScriptedBackend::start(|mut connection| {
        let head = connection.read_head().unwrap().to_lowercase();
        assert!(
            head.contains("upgrade: websocket") && head.contains("connection: upgrade"),
            "{head}"
        );
        // The first bytes of the tunnel follow the head directly.
        connection.send(format!("{UPGRADE_RESPONSE}welcome"));
        while let Some(bytes) = connection.read_exact(5) {
            connection.send(bytes.to_ascii_uppercase());
            if bytes == b"close" {
                return;
            }
        }
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    client.send(UPGRADE_REQUEST);
    let (status, head) = client.read_head().unwrap();
    assert_eq!(status, 101);
    assert!(
        head.to_lowercase().contains("upgrade: websocket")
            && head.contains("sec-websocket-accept: y"),
        "{head}"
    );
    assert_eq!(client.read_raw(7), b"welcome");
    for word in ["hello", "there"] {
        client.send(word);
        assert_eq!(client.read_raw(5), word.to_ascii_uppercase().as_bytes());
    }
    client.send("close");
    assert_eq!(
        client.read_raw(5),
        b"CLOSE",
        "bytes sent before the close are forwarded"
    );
    client.wait_for_close();
    eventually("no request is in flight", || sidecar.in_flight() == 0);
    assert_eq!(sidecar.access_log_lines(1)[0]["status"], 101);
}

#[test]
fn a_tunnel_ends_when_the_client_disconnects() {
    let backend = ScriptedBackend::start(|mut connection| {
        connection.read_head();
        connection.send(UPGRADE_RESPONSE);
        connection.wait_for_close();
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    client.send(UPGRADE_REQUEST);
    assert_eq!(client.read_head().unwrap().0, 101);
    drop(client);
    eventually("no request is in flight", || sidecar.in_flight() == 0);
    assert_eq!(sidecar.admin_json("/api/v1/backends")[0]["connections"], 0);
}

#[test]
fn an_idle_tunnel_is_closed() {
    let backend = ScriptedBackend::start(|mut connection| {
        connection.read_head();
        connection.send(UPGRADE_RESPONSE);
        connection.wait_for_close();
    });
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {timeouts: {streamIdle: 50ms}}\n",
    ));
    let mut client = sidecar.client();
    client.send(UPGRADE_REQUEST);
    assert_eq!(client.read_head().unwrap().0, 101);
    client.wait_for_close();
}

#[test]
fn an_unrequested_upgrade_is_not_forwarded() {
    for response in [
        UPGRADE_RESPONSE,
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: other\r\n\r\n",
    ] {
        let backend = ScriptedBackend::start(move |mut connection| {
            connection.read_head();
            connection.send(response);
            connection.wait_for_close();
        });
        let sidecar = Sidecar::start(&policy(&[backend.address], ""));
        let request = if response == UPGRADE_RESPONSE {
            "GET / HTTP/1.1\r\nhost: a\r\n\r\n"
        } else {
            UPGRADE_REQUEST
        };
        let response = sidecar.client().send(request).read_response();
        assert_eq!(
            (response.status, response.reason()),
            (
                502,
                format!("upstream_protocol_error:{}", backend.address).as_str()
            )
        );
    }
}

#[test]
fn a_declined_upgrade_is_forwarded_as_an_ordinary_response() {
    let backend = ScriptedBackend::responding_with(|_| {
        "HTTP/1.1 426 Upgrade Required\r\nupgrade: other\r\ncontent-length: 2\r\n\r\nno".into()
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    let response = client.send(UPGRADE_REQUEST).read_response();
    assert_eq!((response.status, response.text().as_str()), (426, "no"));
}
