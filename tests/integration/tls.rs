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
    Backend, Directory, Sidecar,
    certificates::{Authority, Certificate},
    eventually,
    http2::Http2Client,
    sidecar::policy,
};
use outrigger::transport::{paced::Paced, socket::Socket, wire};

/// Asks over TLS in HTTP/1, on a connection of its own; the answer as text, or why there is none.
fn ask(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
    name: &str,
    request: &str,
) -> Result<String, String> {
    let tcp = TcpStream::connect(address).unwrap();
    tcp.set_read_timeout(Some(crate::support::PATIENCE))
        .unwrap();
    let session =
        ClientConnection::new(config.clone(), name.to_owned().try_into().unwrap()).unwrap();
    let mut stream = StreamOwned::new(session, tcp);
    stream
        .write_all(request.as_bytes())
        .map_err(|error| error.to_string())?;
    let mut answer = Vec::new();
    // An end without a goodbye is no reason to doubt what came.
    let end = stream.read_to_end(&mut answer);
    if answer.is_empty() {
        Err(end
            .err()
            .map_or("nothing came".to_owned(), |error| error.to_string()))
    } else {
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

fn listening(authority: &Authority, backend: &Backend, extra: &str, sections: &str) -> String {
    let file = |name: &str| authority.path(name).display().to_string();
    let tls = format!(
        "tls: {{certFile: \"{}\", keyFile: \"{}\"{extra}}}",
        file("server.crt"),
        file("server.key")
    );
    policy(&[backend.address], sections)
        .replace("\"127.0.0.1:0\"", &format!("\"127.0.0.1:0\", {tls}"))
}

fn client_ca(authority: &Authority) -> String {
    format!(", clientCaFile: \"{}\"", authority.path("ca.crt").display())
}

#[test]
fn a_listener_speaks_tls_in_http1_and_http2() {
    let (authority, backend) = (Authority::new(), Backend::healthy());
    authority.write("server", &authority.issue(&["shop.test"]));
    let sidecar = Sidecar::start(&listening(&authority, &backend, "", ""));
    let address = sidecar.address("inbound");
    let plain = authority.client(None, &[b"http/1.1"]);
    let answer = ask(address, &plain, "shop.test", GET).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"),
        "{answer}"
    );
    assert_eq!(backend.seen()[0].header("x-forwarded-proto"), Some("https"));
    // Keep-alive, with several requests on one connection.
    let two = format!("GET /1 HTTP/1.1\r\nhost: a\r\n\r\n{GET}");
    assert_eq!(
        ask(address, &plain, "shop.test", &two)
            .unwrap()
            .matches("hello")
            .count(),
        2
    );
    let http2 = over_tls(address, authority.client(None, &[b"h2"]), "shop.test");
    assert_eq!(http2.get("/").status, 200);
    assert_eq!(&http2.post("/", &vec![b'x'; 300_000]).body[..], b"hello");
    let wrong = ask(address, &plain, "other.test", GET).unwrap_err();
    assert!(wrong.contains("not valid for name"), "{wrong}");
    sidecar.client().send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("who is not understood is counted", || {
        sidecar.metric(r#"outrigger_tls_handshake_failures_total{owner="listener inbound"}"#) >= 2.0
    });
}

fn over_tls(address: SocketAddr, config: Arc<ClientConfig>, name: &str) -> Http2Client {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let session = ClientConnection::new(config, name.to_owned().try_into().unwrap()).unwrap();
    let connection = runtime.block_on(async {
        let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        let (connection, wire) = wire::open(Socket::Tcp(tcp), Some(session.into()));
        assert_eq!(
            wire.handshake().await.unwrap().protocol.as_deref(),
            Some(&b"h2"[..])
        );
        connection
    });
    Http2Client::over(runtime, Paced(connection))
}

#[test]
fn a_client_without_a_good_certificate_is_not_let_in() {
    let (authority, stranger, backend) = (Authority::new(), Authority::new(), Backend::healthy());
    authority.write("server", &authority.issue(&["shop.test"]));
    let sidecar = Sidecar::start(&listening(&authority, &backend, &client_ca(&authority), ""));
    let address = sidecar.address("inbound");
    let front = authority.issue(&["front.test"]);
    assert!(
        ask(
            address,
            &authority.client(Some(&front), &[]),
            "shop.test",
            GET
        )
        .unwrap()
        .contains("hello")
    );
    assert!(
        ask(address, &authority.client(None, &[]), "shop.test", GET)
            .unwrap_err()
            .contains("CertificateRequired")
    );
    let unknown = stranger.issue(&["front.test"]);
    assert!(
        ask(
            address,
            &authority.client(Some(&unknown), &[]),
            "shop.test",
            GET
        )
        .is_err()
    );
    let ended = authority.issue_until(&["front.test"], 2020);
    assert!(
        ask(
            address,
            &authority.client(Some(&ended), &[]),
            "shop.test",
            GET
        )
        .unwrap_err()
        .contains("CertificateExpired")
    );
    assert_eq!(backend.seen().len(), 1);
}

#[test]
fn routes_and_rate_limits_know_who_is_there() {
    let (authority, backend) = (Authority::new(), Backend::healthy());
    authority.write("server", &authority.issue(&["shop.test"]));
    let limits = "  defaults: {rateLimit: {local: {rules: [{name: each, clientSelectors: [{identity: {type: Distinct}}], limit: {requests: 2, unit: Hour}}]}}}\n";
    let text = listening(
        &authority,
        &backend,
        &format!("{}, clientAuth: Optional", client_ca(&authority)),
        limits,
    );
    let text = text.replace(
        "backendRefs",
        "allow: {identities: [\"spiffe://shop/ns/web/*\", back.test]}, backendRefs",
    );
    let sidecar = Sidecar::start(&text);
    let as_ = |certificate: Option<&Certificate>| {
        ask(
            sidecar.address("inbound"),
            &authority.client(certificate, &[]),
            "shop.test",
            GET,
        )
        .unwrap()
    };
    let front = authority.issue(&["front.test", "spiffe://shop/ns/web/sa/front"]);
    let back = authority.issue(&["back.test"]);
    let other = authority.issue(&["spiffe://shop/ns/batch/sa/cron"]);
    for certificate in [&front, &back] {
        assert!(as_(Some(certificate)).contains("hello"));
        assert!(as_(Some(certificate)).contains("hello"));
        assert!(
            as_(Some(certificate)).contains("rate_limited:each"),
            "its own bucket is empty"
        );
    }
    for stranger in [Some(&other), None] {
        let refusal = as_(stranger);
        assert!(
            refusal.starts_with("HTTP/1.1 403")
                && refusal.contains("x-outrigger-reason: not_allowed:in"),
            "{refusal}"
        );
    }
}

#[test]
fn new_certificates_are_taken_without_a_restart_and_faulty_ones_are_not() {
    let (authority, backend) = (Authority::new(), Backend::healthy());
    authority.write("server", &authority.issue(&["old.test"]));
    let sidecar = Sidecar::start(&listening(&authority, &backend, "", ""));
    let address = sidecar.address("inbound");
    let trusting = authority.client(None, &[]);
    assert!(ask(address, &trusting, "old.test", GET).is_ok());
    for (name, content, why) in [
        ("server.crt", "not a certificate", "no certificate in"),
        ("server.key", "", "no key in"),
    ] {
        let before = std::fs::read_to_string(authority.path(name)).unwrap();
        authority.directory.write(name, content);
        eventually("it is said", || {
            sidecar.admin("GET", "/readyz?verbose").text().contains(why)
        });
        assert_eq!(
            sidecar.metric(r#"outrigger_certificate_current{owner="listener inbound"}"#),
            0.0
        );
        assert!(
            ask(address, &trusting, "old.test", GET).is_ok(),
            "what was read last is in force"
        );
        assert_eq!(sidecar.admin("GET", "/readyz").status, 200);
        authority.directory.write(name, &before);
        eventually("it is well again", || {
            sidecar.metric(r#"outrigger_certificate_current{owner="listener inbound"}"#) == 1.0
        });
    }
    // One that has ended already.
    let before = authority.issue(&["old.test"]);
    authority.write("server", &before);
    eventually("it is taken", || {
        sidecar
            .admin("GET", "/readyz?verbose")
            .text()
            .contains("as they are in the files")
    });
    authority.write("server", &authority.issue_until(&["old.test"], 2021));
    eventually("it is said", || {
        sidecar
            .admin("GET", "/readyz?verbose")
            .text()
            .contains("a certificate in the files has ended")
    });
    assert!(
        ask(address, &trusting, "old.test", GET).is_ok(),
        "what was read last is in force"
    );
    // Half of a rotation: the key does not fit.
    let new = authority.issue(&["new.test"]);
    authority.directory.write("server.crt", &new.pem);
    eventually("it is said", || {
        sidecar
            .admin("GET", "/readyz?verbose")
            .text()
            .contains("do not fit together")
    });
    authority.directory.write("server.key", &new.key);
    eventually("the new one is in force", || {
        ask(address, &trusting, "new.test", GET).is_ok()
    });
    assert!(
        sidecar
            .events()
            .iter()
            .any(|event| event == "the listener inbound has new certificates"),
        "{:?}",
        sidecar.events()
    );
}

#[test]
fn the_end_of_a_certificate_is_told_before_it_comes_and_when_it_does() {
    let (authority, backend) = (Authority::new(), Backend::healthy());
    let end = SystemTime::now() + Duration::from_secs(3);
    authority.write("server", &authority.issue_ending(&["shop.test"], end));
    let sidecar = Sidecar::start(&listening(&authority, &backend, "", ""));
    let told = |what: &str| {
        sidecar
            .events()
            .iter()
            .filter(|event| event.contains(what))
            .count()
    };
    eventually("its end is near", || {
        told("a certificate of the listener inbound ends in 0 hours") == 1
    });
    let shown = sidecar
        .metric(r#"outrigger_certificate_not_after_timestamp_seconds{owner="listener inbound"}"#);
    assert!(
        (shown - end.duration_since(UNIX_EPOCH).unwrap().as_secs_f64()).abs() <= 1.0,
        "{shown}"
    );
    eventually("it has come", || {
        told("a certificate of the listener inbound has ended") == 1
    });
    assert!(
        sidecar
            .admin("GET", "/readyz?verbose")
            .text()
            .contains("a certificate has ended")
    );
    assert_eq!(told("ends in"), 1, "each is told once");
    sidecar.reload(&policy(&[backend.address], ""));
    eventually("it is forgotten", || {
        sidecar
            .metric(
                r#"outrigger_certificate_not_after_timestamp_seconds{owner="listener inbound"}"#,
            )
            .is_nan()
    });
}

#[test]
fn certificates_that_cannot_be_read_are_refused_with_the_place_in_the_policy() {
    let (authority, backend) = (Authority::new(), Backend::healthy());
    let text = listening(&authority, &backend, "", "");
    let directory = Directory::new();
    directory.write("policy.yaml", &text);
    let refused = Sidecar::start_in(directory, |_| {})
        .err()
        .unwrap()
        .to_string();
    assert!(
        refused.contains("policy.yaml:6:") && refused.contains("server.crt cannot be read"),
        "{refused}"
    );
    authority.write("server", &authority.issue_until(&["shop.test"], 2021));
    let directory = Directory::new();
    directory.write("policy.yaml", &text);
    let refused = Sidecar::start_in(directory, |_| {})
        .err()
        .unwrap()
        .to_string();
    assert!(
        refused.contains("policy.yaml:6:") && refused.contains("has ended"),
        "{refused}"
    );
    std::fs::remove_file(authority.path("server.crt")).unwrap();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let answer = sidecar.reload(&text);
    assert!(
        answer.status != 200 && answer.text().contains("server.crt cannot be read"),
        "{}",
        answer.text()
    );
    assert_eq!(sidecar.get("/").status, 200, "nothing has changed");
}

/// A backend that speaks TLS, and answers with what the client's certificate is for.
struct TlsBackend {
    address: SocketAddr,
    config: Arc<Mutex<Arc<ServerConfig>>>,
    connections: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
}

impl TlsBackend {
    fn start(config: Arc<ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let backend = Self {
            address: listener.local_addr().unwrap(),
            config: Arc::new(Mutex::new(config)),
            connections: Arc::default(),
            is_over: Arc::default(),
        };
        let (config, connections, is_over) = (
            backend.config.clone(),
            backend.connections.clone(),
            backend.is_over.clone(),
        );
        thread::spawn(move || {
            for tcp in listener.incoming() {
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                connections.fetch_add(1, Ordering::SeqCst);
                let session = ServerConnection::new(config.lock().unwrap().clone()).unwrap();
                thread::spawn(move || serve(StreamOwned::new(session, tcp.unwrap())));
            }
        });
        backend
    }
}

impl Drop for TlsBackend {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        _ = TcpStream::connect(self.address);
    }
}

fn serve(mut stream: StreamOwned<ServerConnection, TcpStream>) {
    let (mut seen, mut chunk) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        seen.extend_from_slice(&chunk[..count]);
        if seen.ends_with(b"\r\n\r\n") {
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
            seen.clear();
        }
    }
}

fn towards(authority: &Authority, address: SocketAddr, sni: &str, extra: &str) -> String {
    let tls = format!(
        "tls: {{sni: {sni}, caFile: \"{}\"{extra}}}",
        authority.path("ca.crt").display()
    );
    policy(&[address], "").replace("]}\n  routes", &format!("], {tls}}}\n  routes"))
}

#[test]
fn a_backend_is_spoken_to_in_tls_and_its_connections_are_kept() {
    let authority = Authority::new();
    let backend =
        TlsBackend::start(authority.server(&authority.issue(&["pay.test"]), false, &[b"http/1.1"]));
    let sidecar = Sidecar::start(&towards(&authority, backend.address, "pay.test", ""));
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
fn a_backend_that_is_not_who_it_should_be_gets_no_request() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let good = authority.issue(&["pay.test"]);
    for (server, sni) in [
        (authority.server(&good, false, &[]), "other.test"),
        (
            stranger.server(&stranger.issue(&["pay.test"]), false, &[]),
            "pay.test",
        ),
        (
            authority.server(&authority.issue_until(&["pay.test"], 2020), false, &[]),
            "pay.test",
        ),
    ] {
        let backend = TlsBackend::start(server);
        let sidecar = Sidecar::start(&towards(&authority, backend.address, sni, ""));
        let answer = sidecar.client().post("/pay", "1");
        assert_eq!(
            (answer.status, answer.reason()),
            (502, format!("tls_failed:{}", backend.address).as_str())
        );
        assert!(
            answer
                .header("proxy-status")
                .unwrap()
                .contains("error=tls_protocol_error")
        );
    }
    let plain = Backend::healthy();
    let sidecar = Sidecar::start(&towards(&authority, plain.address, "pay.test", ""));
    // It waits for more of what it cannot read.
    assert_eq!(
        sidecar.get("/").reason(),
        format!("connect_timeout:{}", plain.address)
    );
    assert_eq!(plain.seen().len(), 0);
}

#[test]
fn our_own_certificate_is_shown_and_its_rotation_leaves_no_old_connection() {
    let authority = Authority::new();
    let backend = TlsBackend::start(authority.server(&authority.issue(&["pay.test"]), true, &[]));
    authority.write("own", &authority.issue(&["spiffe://shop/ns/web/sa/one"]));
    let own = format!(
        ", certFile: \"{}\", keyFile: \"{}\"",
        authority.path("own.crt").display(),
        authority.path("own.key").display()
    );
    let sidecar = Sidecar::start(&towards(&authority, backend.address, "pay.test", &own));
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
fn checks_go_the_same_way_as_requests() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let backend =
        TlsBackend::start(authority.server(&authority.issue(&["pay.test"]), false, &[b"http/1.1"]));
    let check = "healthCheck: {active: {type: HTTP, interval: 20ms, timeout: 2s, unhealthyThreshold: 1, healthyThreshold: 1, http: {path: /}}}";
    let text = towards(&authority, backend.address, "pay.test", "")
        .replace("}}\n  routes", &format!("}}, {check}}}\n  routes"));
    let sidecar = Sidecar::start(&text);
    let endpoint = || sidecar.json("/api/v1/backends")[0]["endpoints"][0].clone();
    eventually("it is healthy", || endpoint()["health"] == "healthy");
    *backend.config.lock().unwrap() =
        stranger.server(&stranger.issue(&["pay.test"]), false, &[b"http/1.1"]);
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
    let tcp = TlsBackend::start(stranger.server(&stranger.issue(&["pay.test"]), false, &[]));
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
fn http2_over_tls_needs_its_name_in_alpn() {
    let authority = Authority::new();
    let backend =
        TlsBackend::start(authority.server(&authority.issue(&["pay.test"]), false, &[b"http/1.1"]));
    let sidecar = Sidecar::start(
        &towards(&authority, backend.address, "pay.test", "")
            .replace("}}\n  routes", "}, protocol: HTTP2}\n  routes"),
    );
    assert_eq!(
        sidecar.get("/").reason(),
        format!("tls_failed:{}", backend.address)
    );
    // A sidecar is a backend that does.
    let app = Backend::healthy();
    authority.write("server", &authority.issue(&["pay.test"]));
    let inner = Sidecar::start(&listening(&authority, &app, "", ""));
    let outer = Sidecar::start(
        &towards(&authority, inner.address("inbound"), "pay.test", "")
            .replace("}}\n  routes", "}, protocol: HTTP2}\n  routes"),
    );
    assert_eq!(outer.get("/").text(), "hello");
    assert!(
        app.seen()[0].head.contains("via: 2 outrigger"),
        "the two sidecars speak HTTP/2: {}",
        app.seen()[0].head
    );
}
