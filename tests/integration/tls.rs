//! TLS towards clients and backends: certificates, identities, rotation.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned};

use crate::support::{
    ScriptedBackend, Sidecar, TempDirectory,
    certificates::{Certificate, CertificateAuthority},
    eventually,
    http2::Http2Client,
    policy::policy,
};
use outrigger::transport::{
    backpressured_stream::BackpressuredStream, queued_stream, socket::Socket,
};

/// Asks over TLS in HTTP/1, on a connection of its own; the answer as text, or why there is none.
fn send_over_tls(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
    name: &str,
    request: &str,
) -> Result<String, String> {
    let tcp = TcpStream::connect(address).unwrap();
    tcp.set_read_timeout(Some(crate::support::TEST_TIMEOUT))
        .unwrap();
    let session =
        ClientConnection::new(config.clone(), name.to_owned().try_into().unwrap()).unwrap();
    let mut stream = StreamOwned::new(session, tcp);
    stream
        .write_all(request.as_bytes())
        .map_err(|error| error.to_string())?;
    let mut response = Vec::new();
    // An end without a goodbye is no reason to doubt what came.
    let end = stream.read_to_end(&mut response);
    if response.is_empty() {
        Err(end
            .err()
            .map_or("nothing came".to_owned(), |error| error.to_string()))
    } else {
        Ok(String::from_utf8_lossy(&response).into_owned())
    }
}

const GET_REQUEST: &str = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

fn policy_with_tls_listener(
    authority: &CertificateAuthority,
    backend: &ScriptedBackend,
    extra: &str,
    sections: &str,
) -> String {
    let file = |name: &str| authority.path(name).display().to_string();
    let tls = format!(
        "tls: {{certFile: \"{}\", keyFile: \"{}\"{extra}}}",
        file("server.crt"),
        file("server.key")
    );
    policy(&[backend.address], sections)
        .replace("\"127.0.0.1:0\"", &format!("\"127.0.0.1:0\", {tls}"))
}

fn client_ca_field(authority: &CertificateAuthority) -> String {
    format!(", clientCaFile: \"{}\"", authority.path("ca.crt").display())
}

#[test]
fn a_listener_serves_http1_and_http2_over_tls() {
    let (authority, backend) = (CertificateAuthority::new(), ScriptedBackend::healthy());
    authority.write("server", &authority.issue(&["shop.test"]));
    let sidecar = Sidecar::start(&policy_with_tls_listener(&authority, &backend, "", ""));
    let address = sidecar.address("inbound");
    let plain = authority.client_config(None, &[b"http/1.1"]);
    let response = send_over_tls(address, &plain, "shop.test", GET_REQUEST).unwrap();
    assert!(
        response.starts_with("HTTP/1.1 200") && response.ends_with("hello"),
        "{response}"
    );
    assert_eq!(
        backend.requests()[0].header("x-forwarded-proto"),
        Some("https")
    );
    // Keep-alive, with several requests on one connection.
    let two = format!("GET /1 HTTP/1.1\r\nhost: a\r\n\r\n{GET_REQUEST}");
    assert_eq!(
        send_over_tls(address, &plain, "shop.test", &two)
            .unwrap()
            .matches("hello")
            .count(),
        2
    );
    let http2 = connect_http2_over_tls(
        address,
        authority.client_config(None, &[b"h2"]),
        "shop.test",
    );
    assert_eq!(http2.get("/").status, 200);
    assert_eq!(&http2.post("/", &vec![b'x'; 300_000]).body[..], b"hello");
    let wrong = send_over_tls(address, &plain, "other.test", GET_REQUEST).unwrap_err();
    assert!(wrong.contains("not valid for name"), "{wrong}");
    sidecar.client().send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("who is not understood is counted", || {
        sidecar.metric(r#"outrigger_tls_handshake_failures_total{kind="listener",name="inbound"}"#)
            >= 2.0
    });
}

fn connect_http2_over_tls(
    address: SocketAddr,
    config: Arc<ClientConfig>,
    name: &str,
) -> Http2Client {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let session = ClientConnection::new(config, name.to_owned().try_into().unwrap()).unwrap();
    let connection = runtime.block_on(async {
        let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        let (connection, wire) = queued_stream::open(Socket::Tcp(tcp), Some(session.into()));
        assert_eq!(
            wire.handshake().await.unwrap().alpn_protocol.as_deref(),
            Some(&b"h2"[..])
        );
        connection
    });
    Http2Client::from_stream(runtime, BackpressuredStream(connection))
}

#[test]
fn a_client_without_a_valid_certificate_is_rejected() {
    let (authority, stranger, backend) = (
        CertificateAuthority::new(),
        CertificateAuthority::new(),
        ScriptedBackend::healthy(),
    );
    authority.write("server", &authority.issue(&["shop.test"]));
    let sidecar = Sidecar::start(&policy_with_tls_listener(
        &authority,
        &backend,
        &client_ca_field(&authority),
        "",
    ));
    let address = sidecar.address("inbound");
    let front = authority.issue(&["front.test"]);
    assert!(
        send_over_tls(
            address,
            &authority.client_config(Some(&front), &[]),
            "shop.test",
            GET_REQUEST
        )
        .unwrap()
        .contains("hello")
    );
    assert!(
        send_over_tls(
            address,
            &authority.client_config(None, &[]),
            "shop.test",
            GET_REQUEST
        )
        .unwrap_err()
        .contains("CertificateRequired")
    );
    let unknown = stranger.issue(&["front.test"]);
    assert!(
        send_over_tls(
            address,
            &authority.client_config(Some(&unknown), &[]),
            "shop.test",
            GET_REQUEST
        )
        .is_err()
    );
    let ended = authority.issue_expiring_in_year(&["front.test"], 2020);
    assert!(
        send_over_tls(
            address,
            &authority.client_config(Some(&ended), &[]),
            "shop.test",
            GET_REQUEST
        )
        .unwrap_err()
        .contains("CertificateExpired")
    );
    assert_eq!(backend.requests().len(), 1);
}

#[test]
fn routes_and_rate_limits_apply_to_client_identities() {
    let (authority, backend) = (CertificateAuthority::new(), ScriptedBackend::healthy());
    authority.write("server", &authority.issue(&["shop.test"]));
    let limits = "  defaults: {rateLimit: {local: {rules: [{name: each, clientSelectors: [{identity: {type: Distinct}}], limit: {requests: 2, unit: Hour}}]}}}\n";
    let text = policy_with_tls_listener(
        &authority,
        &backend,
        &format!("{}, clientAuth: Optional", client_ca_field(&authority)),
        limits,
    );
    let text = text.replace(
        "backendRefs",
        "allow: {identities: [\"spiffe://shop/ns/web/*\", back.test]}, backendRefs",
    );
    let sidecar = Sidecar::start(&text);
    let send_with_certificate = |certificate: Option<&Certificate>| {
        send_over_tls(
            sidecar.address("inbound"),
            &authority.client_config(certificate, &[]),
            "shop.test",
            GET_REQUEST,
        )
        .unwrap()
    };
    let front = authority.issue(&["front.test", "spiffe://shop/ns/web/sa/front"]);
    let back = authority.issue(&["back.test"]);
    let other = authority.issue(&["spiffe://shop/ns/batch/sa/cron"]);
    for certificate in [&front, &back] {
        assert!(send_with_certificate(Some(certificate)).contains("hello"));
        assert!(send_with_certificate(Some(certificate)).contains("hello"));
        assert!(
            send_with_certificate(Some(certificate)).contains("rate_limited:each"),
            "its own bucket is empty"
        );
    }
    for stranger in [Some(&other), None] {
        let refusal = send_with_certificate(stranger);
        assert!(
            refusal.starts_with("HTTP/1.1 403")
                && refusal.contains("x-outrigger-reason: not_allowed:in"),
            "{refusal}"
        );
    }
}

#[test]
fn renewed_certificates_are_loaded_without_a_restart_and_invalid_ones_are_not() {
    let (authority, backend) = (CertificateAuthority::new(), ScriptedBackend::healthy());
    authority.write("server", &authority.issue(&["old.test"]));
    let sidecar = Sidecar::start(&policy_with_tls_listener(&authority, &backend, "", ""));
    let address = sidecar.address("inbound");
    let trusting = authority.client_config(None, &[]);
    assert!(send_over_tls(address, &trusting, "old.test", GET_REQUEST).is_ok());
    for (name, content, why) in [
        ("server.crt", "not a certificate", "no certificate in"),
        ("server.key", "", "no key in"),
    ] {
        let before = std::fs::read_to_string(authority.path(name)).unwrap();
        authority.directory.write(name, content);
        eventually("it is said", || {
            sidecar
                .call_admin("GET", "/readyz?verbose")
                .text()
                .contains(why)
        });
        assert_eq!(
            sidecar.metric(r#"outrigger_certificate_current{kind="listener",name="inbound"}"#),
            0.0
        );
        assert!(
            send_over_tls(address, &trusting, "old.test", GET_REQUEST).is_ok(),
            "what was read last is in force"
        );
        assert_eq!(sidecar.call_admin("GET", "/readyz").status, 200);
        authority.directory.write(name, &before);
        eventually("it is well again", || {
            sidecar.metric(r#"outrigger_certificate_current{kind="listener",name="inbound"}"#)
                == 1.0
        });
    }
    // One that has ended already.
    let before = authority.issue(&["old.test"]);
    authority.write("server", &before);
    eventually("it is taken", || {
        sidecar
            .call_admin("GET", "/readyz?verbose")
            .text()
            .contains("as they are in the files")
    });
    authority.write(
        "server",
        &authority.issue_expiring_in_year(&["old.test"], 2021),
    );
    eventually("it is said", || {
        sidecar
            .call_admin("GET", "/readyz?verbose")
            .text()
            .contains("a certificate in the files has ended")
    });
    assert!(
        send_over_tls(address, &trusting, "old.test", GET_REQUEST).is_ok(),
        "what was read last is in force"
    );
    // Half of a rotation: the key does not fit.
    let new = authority.issue(&["new.test"]);
    authority.directory.write("server.crt", &new.pem);
    eventually("it is said", || {
        sidecar
            .call_admin("GET", "/readyz?verbose")
            .text()
            .contains("do not fit together")
    });
    authority.directory.write("server.key", &new.key);
    eventually("the new one is in force", || {
        send_over_tls(address, &trusting, "new.test", GET_REQUEST).is_ok()
    });
    assert!(
        sidecar
            .events()
            .iter()
            .any(|event| event == "the listener inbound uses new certificates"),
        "{:?}",
        sidecar.events()
    );
}

#[test]
fn certificate_expiry_is_logged_before_and_when_it_happens() {
    let (authority, backend) = (CertificateAuthority::new(), ScriptedBackend::healthy());
    let end = SystemTime::now() + Duration::from_secs(3);
    authority.write("server", &authority.issue_expiring_at(&["shop.test"], end));
    let sidecar = Sidecar::start(&policy_with_tls_listener(&authority, &backend, "", ""));
    let count_events = |what: &str| {
        sidecar
            .events()
            .iter()
            .filter(|event| event.contains(what))
            .count()
    };
    eventually("its end is near", || {
        count_events("a certificate of the listener inbound expires in 0 hours") == 1
    });
    let shown = sidecar.metric(
        r#"outrigger_certificate_not_after_timestamp_seconds{kind="listener",name="inbound"}"#,
    );
    assert!(
        (shown - end.duration_since(UNIX_EPOCH).unwrap().as_secs_f64()).abs() <= 1.0,
        "{shown}"
    );
    eventually("it has come", || {
        count_events("a certificate of the listener inbound has expired") == 1
    });
    assert!(
        sidecar
            .call_admin("GET", "/readyz?verbose")
            .text()
            .contains("a certificate has ended")
    );
    assert_eq!(count_events("expires in"), 1, "each is told once");
    sidecar.reload(&policy(&[backend.address], ""));
    eventually("it is forgotten", || {
        sidecar
            .metric(
                r#"outrigger_certificate_not_after_timestamp_seconds{kind="listener",name="inbound"}"#,
            )
            .is_nan()
    });
}

#[test]
fn unreadable_or_expired_certificates_are_rejected_with_their_location() {
    let (authority, backend) = (CertificateAuthority::new(), ScriptedBackend::healthy());
    let text = policy_with_tls_listener(&authority, &backend, "", "");
    let directory = TempDirectory::new();
    directory.write("policy.yaml", &text);
    let refused = Sidecar::start_with_settings(directory, |_| {})
        .err()
        .unwrap()
        .to_string();
    assert!(
        refused.contains("policy.yaml:6:") && refused.contains("server.crt cannot be read"),
        "{refused}"
    );
    authority.write(
        "server",
        &authority.issue_expiring_in_year(&["shop.test"], 2021),
    );
    let directory = TempDirectory::new();
    directory.write("policy.yaml", &text);
    let refused = Sidecar::start_with_settings(directory, |_| {})
        .err()
        .unwrap()
        .to_string();
    assert!(
        refused.contains("policy.yaml:6:") && refused.contains("has ended"),
        "{refused}"
    );
    std::fs::remove_file(authority.path("server.crt")).unwrap();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let response = sidecar.reload(&text);
    assert!(
        response.status != 200 && response.text().contains("server.crt cannot be read"),
        "{}",
        response.text()
    );
    assert_eq!(sidecar.get("/").status, 200, "nothing has changed");
}

/// A backend that speaks TLS, and answers with what the client's certificate is for.
struct TlsBackend {
    address: SocketAddr,
    config: Arc<Mutex<Arc<ServerConfig>>>,
    connections: Arc<AtomicUsize>,
    is_stopped: Arc<AtomicBool>,
}

impl TlsBackend {
    fn start(config: Arc<ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let backend = Self {
            address: listener.local_addr().unwrap(),
            config: Arc::new(Mutex::new(config)),
            connections: Arc::default(),
            is_stopped: Arc::default(),
        };
        let (config, connections, is_stopped) = (
            backend.config.clone(),
            backend.connections.clone(),
            backend.is_stopped.clone(),
        );
        thread::spawn(move || {
            for tcp in listener.incoming() {
                if is_stopped.load(Ordering::SeqCst) {
                    return;
                }
                connections.fetch_add(1, Ordering::SeqCst);
                let session = ServerConnection::new(config.lock().unwrap().clone()).unwrap();
                thread::spawn(move || {
                    serve_tls_connection(StreamOwned::new(session, tcp.unwrap()))
                });
            }
        });
        backend
    }
}

impl Drop for TlsBackend {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::SeqCst);
        _ = TcpStream::connect(self.address);
    }
}

fn serve_tls_connection(mut stream: StreamOwned<ServerConnection, TcpStream>) {
    let (mut buffer, mut chunk) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        buffer.extend_from_slice(&chunk[..count]);
        if buffer.ends_with(b"\r\n\r\n") {
            let peer = stream
                .conn
                .peer_certificates()
                .and_then(|chain| outrigger::transport::certificate::identity(&chain[0]))
                .unwrap_or_default();
            let sni = stream.conn.server_name().unwrap_or_default();
            let body = format!("{sni} {peer}");
            _ = stream.write_all(
                format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                )
                .as_bytes(),
            );
            buffer.clear();
        }
    }
}

fn policy_with_tls_backend(
    authority: &CertificateAuthority,
    address: SocketAddr,
    sni: &str,
    extra: &str,
) -> String {
    let tls = format!(
        "tls: {{sni: {sni}, caFile: \"{}\"{extra}}}",
        authority.path("ca.crt").display()
    );
    policy(&[address], "").replace("]}\n  routes", &format!("], {tls}}}\n  routes"))
}

#[test]
fn requests_to_a_tls_backend_reuse_connections() {
    let authority = CertificateAuthority::new();
    let backend = TlsBackend::start(authority.server_config(
        &authority.issue(&["pay.test"]),
        false,
        &[b"http/1.1"],
    ));
    let sidecar = Sidecar::start(&policy_with_tls_backend(
        &authority,
        backend.address,
        "pay.test",
        "",
    ));
    let mut client = sidecar.client();
    for _ in 0..20 {
        assert_eq!(client.get("/").text(), "pay.test ");
    }
    assert!(
        backend.connections.load(Ordering::SeqCst) <= 2,
        "{:?} connections",
        backend.connections
    );
}

#[test]
fn a_backend_with_an_invalid_certificate_receives_no_request() {
    let (authority, stranger) = (CertificateAuthority::new(), CertificateAuthority::new());
    let good = authority.issue(&["pay.test"]);
    for (server, sni) in [
        (authority.server_config(&good, false, &[]), "other.test"),
        (
            stranger.server_config(&stranger.issue(&["pay.test"]), false, &[]),
            "pay.test",
        ),
        (
            authority.server_config(
                &authority.issue_expiring_in_year(&["pay.test"], 2020),
                false,
                &[],
            ),
            "pay.test",
        ),
    ] {
        let backend = TlsBackend::start(server);
        let sidecar = Sidecar::start(&policy_with_tls_backend(
            &authority,
            backend.address,
            sni,
            "",
        ));
        let response = sidecar.client().post("/pay", "1");
        assert_eq!(
            (response.status, response.reason()),
            (502, format!("tls_failed:{}", backend.address).as_str())
        );
        assert!(
            response
                .header("proxy-status")
                .unwrap()
                .contains("error=tls_protocol_error")
        );
        let failures = r#"outrigger_tls_handshake_failures_total{kind="backend",name="app"}"#;
        assert!(sidecar.metric(failures) >= 1.0, "by the backend's name");
    }
    let plain = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy_with_tls_backend(
        &authority,
        plain.address,
        "pay.test",
        "",
    ));
    // It waits for more of what it cannot read.
    assert_eq!(
        sidecar.get("/").reason(),
        format!("connect_timeout:{}", plain.address)
    );
    assert_eq!(plain.requests().len(), 0);
}

#[test]
fn the_client_certificate_is_presented_and_its_rotation_leaves_no_old_connection() {
    let authority = CertificateAuthority::new();
    let backend =
        TlsBackend::start(authority.server_config(&authority.issue(&["pay.test"]), true, &[]));
    authority.write("own", &authority.issue(&["spiffe://shop/ns/web/sa/one"]));
    let own = format!(
        ", certFile: \"{}\", keyFile: \"{}\"",
        authority.path("own.crt").display(),
        authority.path("own.key").display()
    );
    let sidecar = Sidecar::start(&policy_with_tls_backend(
        &authority,
        backend.address,
        "pay.test",
        &own,
    ));
    assert_eq!(
        sidecar.get("/").text(),
        "pay.test spiffe://shop/ns/web/sa/one"
    );
    let renewed = authority.issue(&["spiffe://shop/ns/web/sa/two"]);
    authority.write("own", &renewed);
    eventually("the new one is shown", || {
        sidecar.get("/").text() == "pay.test spiffe://shop/ns/web/sa/two"
    });
    for _ in 0..10 {
        assert_eq!(
            sidecar.get("/").text(),
            "pay.test spiffe://shop/ns/web/sa/two",
            "no old connection is left"
        );
    }
}

#[test]
fn active_checks_verify_tls_as_requests_do() {
    let (authority, stranger) = (CertificateAuthority::new(), CertificateAuthority::new());
    let backend = TlsBackend::start(authority.server_config(
        &authority.issue(&["pay.test"]),
        false,
        &[b"http/1.1"],
    ));
    let check = "healthCheck: {active: {type: HTTP, interval: 20ms, timeout: 2s, unhealthyThreshold: 1, healthyThreshold: 1, http: {path: /}}}";
    let text = policy_with_tls_backend(&authority, backend.address, "pay.test", "")
        .replace("}}\n  routes", &format!("}}, {check}}}\n  routes"));
    let sidecar = Sidecar::start(&text);
    let endpoint = || sidecar.admin_json("/api/v1/backends")[0]["endpoints"][0].clone();
    eventually("it is healthy", || endpoint()["health"] == "healthy");
    *backend.config.lock().unwrap() =
        stranger.server_config(&stranger.issue(&["pay.test"]), false, &[b"http/1.1"]);
    eventually("it is not trusted any more", || {
        endpoint()["health"] == "unhealthy"
    });
    assert!(
        endpoint()["last_check"]
            .as_str()
            .unwrap()
            .starts_with("tls: "),
        "{}",
        endpoint()
    );
    let tcp = TlsBackend::start(stranger.server_config(&stranger.issue(&["pay.test"]), false, &[]));
    let text = text
        .replace(&backend.address.to_string(), &tcp.address.to_string())
        .replace("type: HTTP", "type: TCP")
        .replace(", http: {path: /}", "");
    assert_eq!(sidecar.reload(&text).status, 200);
    eventually("a connection alone is not enough", || {
        endpoint()["health"] == "unhealthy"
    });
}

#[test]
fn http2_over_tls_requires_h2_in_alpn() {
    let authority = CertificateAuthority::new();
    let backend = TlsBackend::start(authority.server_config(
        &authority.issue(&["pay.test"]),
        false,
        &[b"http/1.1"],
    ));
    let sidecar = Sidecar::start(
        &policy_with_tls_backend(&authority, backend.address, "pay.test", "")
            .replace("}}\n  routes", "}, protocol: HTTP2}\n  routes"),
    );
    assert_eq!(
        sidecar.get("/").reason(),
        format!("tls_failed:{}", backend.address)
    );
    // A sidecar is a backend that does.
    let app = ScriptedBackend::healthy();
    authority.write("server", &authority.issue(&["pay.test"]));
    let inner = Sidecar::start(&policy_with_tls_listener(&authority, &app, "", ""));
    let outer = Sidecar::start(
        &policy_with_tls_backend(&authority, inner.address("inbound"), "pay.test", "")
            .replace("}}\n  routes", "}, protocol: HTTP2}\n  routes"),
    );
    assert_eq!(outer.get("/").text(), "hello");
    assert!(
        app.requests()[0].head.contains("via: 2 outrigger"),
        "the two sidecars speak HTTP/2: {}",
        app.requests()[0].head
    );
}
