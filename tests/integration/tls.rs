//! TLS with clients and backends: certificates, identities, rotation.

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
    policy::{PolicyBuilder, policy},
};
use outrigger::transport::{
    backpressured_stream::BackpressuredStream, queued_stream, socket::Socket,
};

/// Sends an HTTP/1 request on a new TLS connection. Returns the response as text, or the error if
/// no byte of it arrived.
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
    // A connection that ends without a close_notify alert still carries a complete response.
    let end = stream.read_to_end(&mut response);
    if response.is_empty() {
        Err(end.err().map_or(
            "the connection ended without a response".to_owned(),
            |error| error.to_string(),
        ))
    } else {
        Ok(String::from_utf8_lossy(&response).into_owned())
    }
}

const GET_REQUEST: &str = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

/// Returns a policy whose listener presents `server.crt` of the authority. `tls_fields` starts with
/// a comma if it is not empty.
fn policy_with_tls_listener(
    authority: &CertificateAuthority,
    backend: &ScriptedBackend,
    tls_fields: &str,
) -> PolicyBuilder {
    PolicyBuilder::to_backend(backend).listener_fields(authority.listener_tls(tls_fields))
}

fn client_ca_field(authority: &CertificateAuthority) -> String {
    format!(", clientCaFile: \"{}\"", authority.path("ca.crt").display())
}

#[test]
fn a_listener_serves_http1_and_http2_over_tls() {
    let (authority, backend) = (CertificateAuthority::new(), ScriptedBackend::healthy());
    authority.write("server", &authority.issue(&["shop.test"]));
    let sidecar = Sidecar::start(&policy_with_tls_listener(&authority, &backend, "").build());
    let address = sidecar.address("inbound");
    let http1_config = authority.client_config(None, &[b"http/1.1"]);
    let response = send_over_tls(address, &http1_config, "shop.test", GET_REQUEST).unwrap();
    assert!(
        response.starts_with("HTTP/1.1 200") && response.ends_with("hello"),
        "{response}"
    );
    assert_eq!(
        backend.requests()[0].header("x-forwarded-proto"),
        Some("https")
    );
    // Both requests are sent on one connection.
    let two_requests = format!("GET /1 HTTP/1.1\r\nhost: a\r\n\r\n{GET_REQUEST}");
    assert_eq!(
        send_over_tls(address, &http1_config, "shop.test", &two_requests)
            .unwrap()
            .matches("hello")
            .count(),
        2
    );
    let http10_config = authority.client_config(None, &[b"http/1.0"]);
    let request = "GET / HTTP/1.0\r\nhost: a\r\n\r\n";
    let response = send_over_tls(address, &http10_config, "shop.test", request).unwrap();
    assert!(response.ends_with("hello"), "{response}");
    let http2 = connect_http2_over_tls(
        address,
        authority.client_config(None, &[b"h2"]),
        "shop.test",
    );
    assert_eq!(http2.get("/").status, 200);
    assert_eq!(&http2.post("/", &vec![b'x'; 300_000]).body[..], b"hello");
    let error = send_over_tls(address, &http1_config, "other.test", GET_REQUEST).unwrap_err();
    assert!(error.contains("not valid for name"), "{error}");
    sidecar.client().send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("the failed handshakes are counted", || {
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
        let connection = queued_stream::open(Socket::Tcp(tcp), Some(session.into()));
        let wire = connection.handle().clone();
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
    let (authority, untrusted_authority, backend) = (
        CertificateAuthority::new(),
        CertificateAuthority::new(),
        ScriptedBackend::healthy(),
    );
    authority.write("server", &authority.issue(&["shop.test"]));
    let policy = policy_with_tls_listener(&authority, &backend, &client_ca_field(&authority));
    let sidecar = Sidecar::start(&policy.build());
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
    let untrusted = untrusted_authority.issue(&["front.test"]);
    assert!(
        send_over_tls(
            address,
            &authority.client_config(Some(&untrusted), &[]),
            "shop.test",
            GET_REQUEST
        )
        .is_err()
    );
    let expired = authority.issue_expiring_in_year(&["front.test"], 2020);
    assert!(
        send_over_tls(
            address,
            &authority.client_config(Some(&expired), &[]),
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
    let limits = "  defaults: {rateLimit: {local: {rules: [{name: each, \
                  clientSelectors: [{identity: {type: Distinct}}], \
                  limit: {requests: 2, unit: Hour}}]}}}\n";
    let tls_fields = format!("{}, clientAuth: Optional", client_ca_field(&authority));
    let policy = policy_with_tls_listener(&authority, &backend, &tls_fields)
        .route_fields("allow: {identities: [\"spiffe://shop/ns/web/*\", back.test]}")
        .sections(limits);
    let sidecar = Sidecar::start(&policy.build());
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
            "each identity has its own quota"
        );
    }
    for certificate in [Some(&other), None] {
        let rejection = send_with_certificate(certificate);
        assert!(
            rejection.starts_with("HTTP/1.1 403")
                && rejection.contains("x-outrigger-reason: not_allowed:in"),
            "{rejection}"
        );
    }
}

const CERTIFICATE_CURRENT: &str =
    r#"outrigger_certificate_current{kind="listener",name="inbound"}"#;

const CERTIFICATE_NOT_AFTER: &str =
    r#"outrigger_certificate_not_after_timestamp_seconds{kind="listener",name="inbound"}"#;

fn readiness_report(sidecar: &Sidecar) -> String {
    sidecar.call_admin("GET", "/readyz?verbose").text()
}

#[test]
fn unreadable_certificate_files_leave_the_loaded_certificate_in_force() {
    let (authority, backend) = (CertificateAuthority::new(), ScriptedBackend::healthy());
    authority.write("server", &authority.issue(&["old.test"]));
    let sidecar = Sidecar::start(&policy_with_tls_listener(&authority, &backend, "").build());
    let address = sidecar.address("inbound");
    let client_config = authority.client_config(None, &[]);
    assert!(send_over_tls(address, &client_config, "old.test", GET_REQUEST).is_ok());
    for (name, content, error) in [
        ("server.crt", "not a certificate", "no certificate in"),
        ("server.key", "", "no key in"),
    ] {
        let valid_content = std::fs::read_to_string(authority.path(name)).unwrap();
        authority.directory.write(name, content);
        eventually("the readiness report states the error", || {
            readiness_report(&sidecar).contains(error)
        });
        assert_eq!(sidecar.metric(CERTIFICATE_CURRENT), 0.0);
        assert!(
            send_over_tls(address, &client_config, "old.test", GET_REQUEST).is_ok(),
            "the certificate that was loaded last is in force"
        );
        assert_eq!(sidecar.call_admin("GET", "/readyz").status, 200);
        authority.directory.write(name, &valid_content);
        eventually("the certificate is current again", || {
            sidecar.metric(CERTIFICATE_CURRENT) == 1.0
        });
    }
}

#[test]
fn a_valid_and_complete_certificate_renewal_is_loaded_without_a_restart() {
    let (authority, backend) = (CertificateAuthority::new(), ScriptedBackend::healthy());
    authority.write("server", &authority.issue(&["old.test"]));
    let sidecar = Sidecar::start(&policy_with_tls_listener(&authority, &backend, "").build());
    let address = sidecar.address("inbound");
    let client_config = authority.client_config(None, &[]);
    let expired = authority.issue_expiring_in_year(&["old.test"], 2021);
    authority.write("server", &expired);
    eventually("the readiness report states that it has expired", || {
        readiness_report(&sidecar).contains("a certificate in the files has expired")
    });
    assert!(
        send_over_tls(address, &client_config, "old.test", GET_REQUEST).is_ok(),
        "the certificate that was loaded last is in force"
    );
    // During a rotation, the key does not match the certificate for a short time.
    let renewed = authority.issue(&["new.test"]);
    authority.directory.write("server.crt", &renewed.pem);
    eventually("the readiness report states the mismatch", || {
        readiness_report(&sidecar).contains("do not match")
    });
    authority.directory.write("server.key", &renewed.key);
    eventually("the renewed certificate is in force", || {
        send_over_tls(address, &client_config, "new.test", GET_REQUEST).is_ok()
    });
    let events = sidecar.events();
    assert!(
        events
            .iter()
            .any(|event| event == "the listener inbound uses new certificates"),
        "{events:?}"
    );
}

#[test]
fn certificate_expiry_is_logged_before_and_when_it_happens() {
    let (authority, backend) = (CertificateAuthority::new(), ScriptedBackend::healthy());
    let end = SystemTime::now() + Duration::from_secs(3);
    authority.write("server", &authority.issue_expiring_at(&["shop.test"], end));
    let sidecar = Sidecar::start(&policy_with_tls_listener(&authority, &backend, "").build());
    let count_events = |what: &str| {
        sidecar
            .events()
            .iter()
            .filter(|event| event.contains(what))
            .count()
    };
    eventually("the approaching expiry is logged", || {
        count_events("a certificate of the listener inbound expires in 0 hours") == 1
    });
    let not_after = sidecar.metric(CERTIFICATE_NOT_AFTER);
    assert!(
        (not_after - end.duration_since(UNIX_EPOCH).unwrap().as_secs_f64()).abs() <= 1.0,
        "{not_after}"
    );
    eventually("the expiry is logged", || {
        count_events("a certificate of the listener inbound has expired") == 1
    });
    assert!(readiness_report(&sidecar).contains("a certificate has expired"));
    assert_eq!(
        count_events("expires in"),
        1,
        "the approaching expiry is logged once"
    );
    sidecar.reload(&policy(&[backend.address], ""));
    eventually("the metric of the removed certificate has no value", || {
        sidecar.metric(CERTIFICATE_NOT_AFTER).is_nan()
    });
}

#[test]
fn unreadable_or_expired_certificates_are_rejected_with_their_location() {
    let (authority, backend) = (CertificateAuthority::new(), ScriptedBackend::healthy());
    let text = policy_with_tls_listener(&authority, &backend, "").build();
    let directory = TempDirectory::new();
    directory.write("policy.yaml", &text);
    let error = Sidecar::start_with_settings(directory, |_| {})
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("policy.yaml:6:") && error.contains("server.crt cannot be read"),
        "{error}"
    );
    authority.write(
        "server",
        &authority.issue_expiring_in_year(&["shop.test"], 2021),
    );
    let directory = TempDirectory::new();
    directory.write("policy.yaml", &text);
    let error = Sidecar::start_with_settings(directory, |_| {})
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("policy.yaml:6:") && error.contains("has expired"),
        "{error}"
    );
    std::fs::remove_file(authority.path("server.crt")).unwrap();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let response = sidecar.reload(&text);
    assert!(
        response.status != 200 && response.text().contains("server.crt cannot be read"),
        "{}",
        response.text()
    );
    assert_eq!(
        sidecar.get("/").status,
        200,
        "the previous policy stays active"
    );
}

/// A TLS backend. Its response states the SNI and the identity of the client certificate.
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

/// Returns a policy with a TLS backend. `tls_fields` starts with a comma if it is not empty.
fn policy_with_tls_backend(
    authority: &CertificateAuthority,
    address: SocketAddr,
    sni: &str,
    tls_fields: &str,
) -> PolicyBuilder {
    PolicyBuilder::new(&[address]).backend_fields(format!(
        "tls: {{sni: {sni}, caFile: \"{}\"{tls_fields}}}",
        authority.path("ca.crt").display()
    ))
}

#[test]
fn requests_to_a_tls_backend_reuse_connections() {
    let authority = CertificateAuthority::new();
    let backend = TlsBackend::start(authority.server_config(
        &authority.issue(&["pay.test"]),
        false,
        &[b"http/1.1"],
    ));
    let policy = policy_with_tls_backend(&authority, backend.address, "pay.test", "");
    let sidecar = Sidecar::start(&policy.build());
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
    let (authority, untrusted_authority) =
        (CertificateAuthority::new(), CertificateAuthority::new());
    let certificate = authority.issue(&["pay.test"]);
    for (server, sni) in [
        (
            authority.server_config(&certificate, false, &[]),
            "other.test",
        ),
        (
            untrusted_authority.server_config(
                &untrusted_authority.issue(&["pay.test"]),
                false,
                &[],
            ),
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
        let policy = policy_with_tls_backend(&authority, backend.address, sni, "");
        let sidecar = Sidecar::start(&policy.build());
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
        assert!(
            sidecar.metric(failures) >= 1.0,
            "the label is the name of the backend"
        );
    }
    let plaintext_backend = ScriptedBackend::healthy();
    let policy = policy_with_tls_backend(&authority, plaintext_backend.address, "pay.test", "");
    let sidecar = Sidecar::start(&policy.build());
    // A backend without TLS waits for the end of an HTTP request head, so the handshake times out.
    assert_eq!(
        sidecar.get("/").reason(),
        format!("connect_timeout:{}", plaintext_backend.address)
    );
    assert_eq!(plaintext_backend.requests().len(), 0);
}

#[test]
fn the_client_certificate_is_presented_and_its_rotation_leaves_no_old_connection() {
    let authority = CertificateAuthority::new();
    let backend =
        TlsBackend::start(authority.server_config(&authority.issue(&["pay.test"]), true, &[]));
    authority.write("own", &authority.issue(&["spiffe://shop/ns/web/sa/one"]));
    let client_certificate = format!(
        ", certFile: \"{}\", keyFile: \"{}\"",
        authority.path("own.crt").display(),
        authority.path("own.key").display()
    );
    let policy =
        policy_with_tls_backend(&authority, backend.address, "pay.test", &client_certificate);
    let sidecar = Sidecar::start(&policy.build());
    assert_eq!(
        sidecar.get("/").text(),
        "pay.test spiffe://shop/ns/web/sa/one"
    );
    let renewed = authority.issue(&["spiffe://shop/ns/web/sa/two"]);
    authority.write("own", &renewed);
    eventually("the renewed certificate is presented", || {
        sidecar.get("/").text() == "pay.test spiffe://shop/ns/web/sa/two"
    });
    for _ in 0..10 {
        assert_eq!(
            sidecar.get("/").text(),
            "pay.test spiffe://shop/ns/web/sa/two",
            "no connection with the old certificate is reused"
        );
    }
}

#[test]
fn active_checks_verify_tls_as_requests_do() {
    let (authority, untrusted_authority) =
        (CertificateAuthority::new(), CertificateAuthority::new());
    let backend = TlsBackend::start(authority.server_config(
        &authority.issue(&["pay.test"]),
        false,
        &[b"http/1.1"],
    ));
    let policy_with_check = |address: SocketAddr, check_type: &str| {
        policy_with_tls_backend(&authority, address, "pay.test", "")
            .backend_fields(format!(
                "healthCheck: {{active: {{type: {check_type}, interval: 20ms, timeout: 2s, \
                 unhealthyThreshold: 1, healthyThreshold: 1}}}}"
            ))
            .build()
    };
    let sidecar = Sidecar::start(&policy_with_check(backend.address, "HTTP, http: {path: /}"));
    let endpoint = || sidecar.admin_json("/api/v1/backends")[0]["endpoints"][0].clone();
    eventually("the endpoint is healthy", || {
        endpoint()["health"] == "healthy"
    });
    *backend.config.lock().unwrap() = untrusted_authority.server_config(
        &untrusted_authority.issue(&["pay.test"]),
        false,
        &[b"http/1.1"],
    );
    eventually(
        "the endpoint with an untrusted certificate is unhealthy",
        || endpoint()["health"] == "unhealthy",
    );
    assert!(
        endpoint()["last_check"]
            .as_str()
            .unwrap()
            .starts_with("tls: "),
        "{}",
        endpoint()
    );
    let tcp_checked = TlsBackend::start(untrusted_authority.server_config(
        &untrusted_authority.issue(&["pay.test"]),
        false,
        &[],
    ));
    let reloaded = sidecar.reload(&policy_with_check(tcp_checked.address, "TCP"));
    assert_eq!(reloaded.status, 200);
    eventually("a TCP check fails if the TLS handshake fails", || {
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
    let http2_policy = |address: SocketAddr| {
        policy_with_tls_backend(&authority, address, "pay.test", "")
            .backend_fields("protocol: HTTP2")
            .build()
    };
    let sidecar = Sidecar::start(&http2_policy(backend.address));
    assert_eq!(
        sidecar.get("/").reason(),
        format!("tls_failed:{}", backend.address)
    );
    // Another sidecar serves as a TLS backend that offers h2.
    let app = ScriptedBackend::healthy();
    authority.write("server", &authority.issue(&["pay.test"]));
    let inner = Sidecar::start(&policy_with_tls_listener(&authority, &app, "").build());
    let outer = Sidecar::start(&http2_policy(inner.address("inbound")));
    assert_eq!(outer.get("/").text(), "hello");
    assert!(
        app.requests()[0].head.contains("via: 2 outrigger"),
        "the request between the sidecars uses HTTP/2: {}",
        app.requests()[0].head
    );
}
