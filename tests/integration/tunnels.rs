//! Upgrades: WebSocket and what else changes the protocol.

use crate::support::{Backend, Sidecar, eventually, sidecar::policy};

const ASK: &str = "GET /chat HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n\r\n";
const AGREE: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: y\r\n\r\n";

#[test]
fn a_tunnel_carries_every_byte_both_ways_and_none_before_it_is_open() {
    let backend = Backend::start(|mut connection| {
        let head = connection.head().unwrap().to_lowercase();
        assert!(
            head.contains("upgrade: websocket") && head.contains("connection: upgrade"),
            "{head}"
        );
        // The first bytes of the tunnel come with the head.
        connection.send(format!("{AGREE}welcome"));
        while let Some(bytes) = connection.exactly(5) {
            connection.send(bytes.to_ascii_uppercase());
            if bytes == b"close" {
                return;
            }
        }
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    client.send(ASK);
    let (status, head) = client.head().unwrap();
    assert_eq!(status, 101);
    assert!(
        head.to_lowercase().contains("upgrade: websocket")
            && head.contains("sec-websocket-accept: y"),
        "{head}"
    );
    assert_eq!(client.raw(7), b"welcome");
    for word in ["hello", "there"] {
        client.send(word);
        assert_eq!(client.raw(5), word.to_ascii_uppercase().as_bytes());
    }
    client.send("close");
    assert_eq!(client.raw(5), b"CLOSE", "what came before the end arrives");
    assert!(client.is_closed());
    eventually("nothing is in flight", || sidecar.in_flight() == 0);
    assert_eq!(sidecar.log(1)[0]["status"], 101);
}

#[test]
fn a_tunnel_ends_when_the_client_leaves() {
    let backend = Backend::start(|mut connection| {
        connection.head();
        connection.send(AGREE);
        connection.wait_for_close();
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    client.send(ASK);
    assert_eq!(client.head().unwrap().0, 101);
    drop(client);
    eventually("nothing is in flight", || sidecar.in_flight() == 0);
    assert_eq!(sidecar.json("/api/v1/backends")[0]["connections"], 0);
}

#[test]
fn a_silent_tunnel_is_ended() {
    let backend = Backend::start(|mut connection| {
        connection.head();
        connection.send(AGREE);
        connection.wait_for_close();
    });
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        "  defaults: {timeouts: {streamIdle: 50ms}}\n",
    ));
    let mut client = sidecar.client();
    client.send(ASK);
    assert_eq!(client.head().unwrap().0, 101);
    assert!(client.is_closed());
}

#[test]
fn an_upgrade_that_was_not_asked_for_is_not_passed_on() {
    for answer in [
        AGREE,
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: other\r\n\r\n",
    ] {
        let backend = Backend::start(move |mut connection| {
            connection.head();
            connection.send(answer);
            connection.wait_for_close();
        });
        let sidecar = Sidecar::start(&policy(&[backend.address], ""));
        let ask = if answer == AGREE {
            "GET / HTTP/1.1\r\nhost: a\r\n\r\n"
        } else {
            ASK
        };
        let answer = sidecar.client().send(ask).answer();
        assert_eq!(
            (answer.status, answer.reason()),
            (
                502,
                format!("upstream_protocol_error:{}", backend.address).as_str()
            )
        );
    }
}

#[test]
fn an_upgrade_that_is_declined_is_an_answer_like_any_other() {
    let backend = Backend::answering(|_| {
        "HTTP/1.1 426 Upgrade Required\r\nupgrade: other\r\ncontent-length: 2\r\n\r\nno".into()
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    let answer = client.send(ASK).answer();
    assert_eq!((answer.status, answer.text().as_str()), (426, "no"));
}
