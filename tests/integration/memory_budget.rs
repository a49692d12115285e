//! The memory budget: attacks on the memory of the sidecar, and its recovery from them.

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustls::ClientConnection;

use crate::support::{
    Client, ScriptedBackend, TempDirectory,
    backend::{ReceivedRequest, ok_response},
    certificates::CertificateAuthority,
    cgroup::MemoryCgroup,
    eventually,
    policy::PolicyBuilder,
    process::SidecarProcess,
    simulate_delay,
};

/// Number of connections of each attack. Together they would need several hundred MiB.
const ATTACKERS: usize = 1_000;

/// Time after which an attack opens no more connections.
const ATTACK_TIME: Duration = Duration::from_secs(5);

/// Time for which a flood sends.
const FLOOD_TIME: Duration = Duration::from_secs(3);

/// Memory limit of the sidecar. A build without optimization needs 25 MiB more for its code, and
/// larger tasks.
const MEMORY_LIMIT_BYTES: u64 = if cfg!(debug_assertions) { 128 } else { 64 } << 20;

/// Memory that the process may retain after an attack, in KiB: pooled connections to the app, and
/// pages that the allocator cannot return. An attack uses three times as much.
const MAX_RETAINED_KIB: u64 = 16 << 10;

/// Metric that is not 0 once the level of memory pressure was high.
const ACCEPT_PAUSED: &str = r#"outrigger_memory_measures_total{measure="accept_paused"}"#;

/// Length of the body of `/large`, in bytes.
const LARGE_BODY_BYTES: usize = 4 << 20;

fn respond(request: &ReceivedRequest) -> String {
    if request.request_line().contains("/large") {
        return ok_response(&"x".repeat(LARGE_BODY_BYTES));
    }
    if request.request_line().contains("/slow") {
        simulate_delay(Duration::from_secs(1));
    }
    ok_response("served")
}

fn write_policy(app: &ScriptedBackend) -> TempDirectory {
    let directory = TempDirectory::new();
    let policy = PolicyBuilder::to_backend(app)
        .sections("  protection: {}\n")
        .build();
    directory.write("policy.yaml", &policy);
    directory
}

/// Opens connections that send the same bytes and read nothing. A connection that the sidecar
/// refuses or resets has served its purpose. The attack stops after [`ATTACK_TIME`], because the
/// sidecar accepts nothing while memory is short.
fn attack(address: SocketAddr, connections: usize, bytes: &[u8]) -> Vec<TcpStream> {
    let start = Instant::now();
    let connect = |_| {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok()?;
        stream.set_nonblocking(true).ok()?;
        _ = stream.write(bytes);
        Some(stream)
    };
    (0..connections)
        .take_while(|_| start.elapsed() < ATTACK_TIME)
        .filter_map(connect)
        .collect()
}

/// Opens connections, and keeps sending the same bytes on each until all were sent or
/// [`FLOOD_TIME`] is over.
fn flood(address: SocketAddr, connections: usize, bytes: &[u8]) {
    let start = Instant::now();
    let streams = attack(address, connections, b"");
    let mut unsent: Vec<_> = streams.iter().map(|stream| (stream, bytes)).collect();
    while start.elapsed() < FLOOD_TIME {
        for (stream, rest) in &mut unsent {
            let sent = stream.write(rest).unwrap_or(0);
            *rest = &rest[sent..];
        }
    }
}

/// Head of a request that never ends.
fn incomplete_head() -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}", "a".repeat(60 << 10)).into_bytes()
}

/// Request with a body of 64 KiB that lacks its last byte, or lacks nothing.
fn body(is_complete: bool) -> Vec<u8> {
    let length = (64 << 10) + usize::from(!is_complete);
    let head = format!("POST /slow HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n");
    [head.into_bytes(), vec![b'x'; 64 << 10]].concat()
}

/// HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let header = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&header, payload].concat()
}

/// Start of an HTTP/2 connection with these settings.
fn preface(settings: &[u8]) -> Vec<u8> {
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, settings),
    ]
    .concat()
}

/// Head of a request for `/large`, as a HEADERS frame that also ends the request.
fn large_request(stream: u32) -> Vec<u8> {
    frame(1, 5, stream, b"\x82\x86\x44\x06/large\x41\x01a")
}

/// HTTP/2 connection with a window of 0 and 100 streams that request `/large`.
fn stalled_streams() -> Vec<u8> {
    let initial_window_size = [0, 4, 0, 0, 0, 0];
    let streams = (0..100).flat_map(|number| large_request(1 + 2 * number));
    preface(&initial_window_size)
        .into_iter()
        .chain(streams)
        .collect()
}

/// HTTP/2 connection with a head that never ends: CONTINUATION frames of 16 KiB without the flag
/// END_HEADERS.
fn endless_continuation() -> Vec<u8> {
    let field = b"\x00\x01a\x01b";
    let first = frame(
        1,
        1,
        1,
        &[b"\x82\x86\x84".as_slice(), &field.repeat(3_000)].concat(),
    );
    let next = frame(9, 0, 1, &field.repeat(3_200));
    [preface(&[]), first, next.repeat(75)].concat()
}

/// HTTP/2 connection that opens streams and resets them at once.
fn rapid_resets() -> Vec<u8> {
    let cancel = [0, 0, 0, 8];
    let streams = (0..500).flat_map(|number| {
        let stream = 1 + 2 * number;
        [large_request(stream), frame(3, 0, stream, &cancel)].concat()
    });
    preface(&[]).into_iter().chain(streams).collect()
}

/// Sets a flag when it is dropped, so that a failed test ends its threads too.
struct SetOnDrop<'f>(&'f AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends requests of the class critical until a flag is set. Counts the responses with status 200
/// after the level was high. Returns the longest time that a probe of the admin server took.
fn send_important_requests(
    sidecar: &SidecarProcess,
    is_over: &AtomicBool,
    served: &AtomicUsize,
) -> Duration {
    let mut longest_probe = Duration::ZERO;
    let mut client = None;
    let mut has_pressure = false;
    while !is_over.load(Ordering::Relaxed) {
        has_pressure |= sidecar.metric(ACCEPT_PAUSED) > 0.0;
        let probed_at = Instant::now();
        assert_eq!(sidecar.get_admin("/livez").trim(), "ok");
        longest_probe = longest_probe.max(probed_at.elapsed());
        let connection = client.get_or_insert_with(|| Client::connect(sidecar.listener_address));
        let request = "GET / HTTP/1.1\r\nhost: a\r\nx-outrigger-priority: critical\r\n\r\n";
        let response = connection
            .try_send(request)
            .then(|| connection.try_read_response())
            .flatten();
        match response {
            Some(response) if response.status == 200 => {
                served.fetch_add(usize::from(has_pressure), Ordering::Relaxed);
            }
            // An idle connection may be closed at any time.
            _ => client = None,
        }
        simulate_delay(Duration::from_millis(10));
    }
    longest_probe
}

/// Returns the largest number of bytes in use until a condition is met.
fn highest_use(sidecar: &SidecarProcess, mut is_over: impl FnMut() -> bool) -> f64 {
    let mut highest = 0.0_f64;
    eventually("the attack is over", || {
        highest = highest.max(sidecar.metric("outrigger_memory_used_bytes"));
        is_over()
    });
    highest
}

/// Returns the resident memory of a process without its code, in KiB.
fn resident_kib(sidecar: &SidecarProcess) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", sidecar.child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon"));
    let number = line.unwrap().split_whitespace().nth(1).unwrap();
    number.parse().unwrap()
}

#[test]
fn attacks_on_the_memory_end_neither_the_process_nor_the_service_of_important_requests() {
    let Some(cgroup) = MemoryCgroup::create(MEMORY_LIMIT_BYTES) else {
        return;
    };
    let app = ScriptedBackend::responding_with(respond);
    let directory = write_policy(&app);
    let mut sidecar = SidecarProcess::start_in_cgroup(&directory, &cgroup);
    let address = sidecar.listener_address;
    eventually("the sidecar serves", || {
        Client::connect(address).get("/").status == 200
    });
    let resident_before = resident_kib(&sidecar);
    let attacks = [
        incomplete_head(),
        body(true),
        body(false),
        b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(),
        stalled_streams(),
        endless_continuation(),
        rapid_resets(),
    ];
    let (is_over, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let longest_probe = thread::scope(|scope| {
        let ends_requests = SetOnDrop(&is_over);
        let important = scope.spawn(|| send_important_requests(&sidecar, &is_over, &served));
        let attackers: Vec<_> = attacks
            .iter()
            .map(|bytes| scope.spawn(move || attack(address, ATTACKERS, bytes)))
            .collect();
        let connections: Vec<_> = attackers
            .into_iter()
            .map(|attacker| attacker.join().unwrap())
            .collect();
        simulate_delay(Duration::from_secs(2));
        eventually("an important request is served during the attacks", || {
            served.load(Ordering::Relaxed) > 0
        });
        drop(connections);
        drop(ends_requests);
        important.join().unwrap()
    });
    let has_ended = sidecar.child.try_wait().unwrap();
    assert_eq!(has_ended, None, "the process lives");
    assert!(
        longest_probe < Duration::from_secs(2),
        "a probe took {longest_probe:?}"
    );
    eventually("the memory is released", || {
        sidecar.metric("outrigger_memory_level") == 0.0
            && resident_kib(&sidecar) < resident_before + MAX_RETAINED_KIB
    });
}

#[test]
fn connections_that_stall_are_closed_before_the_budget_is_used_up() {
    let app = ScriptedBackend::healthy();
    let directory = write_policy(&app);
    let sidecar = SidecarProcess::start_with_arguments(&directory, &["--memory-budget", "4Mi"]);
    let connections = attack(sidecar.listener_address, 500, &incomplete_head());
    let closed = r#"outrigger_memory_measures_total{measure="request_head_closed"}"#;
    eventually("stalled connections are closed", || {
        sidecar.metric(closed) > 0.0
    });
    eventually("a request is served", || {
        let mut client = Client::connect(sidecar.listener_address);
        client.try_send("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            && client
                .try_read_response()
                .is_some_and(|response| response.status == 200)
    });
    drop(connections);
    eventually("the level is normal again", || {
        sidecar.metric("outrigger_memory_level") == 0.0
    });
    let mut events = Client::connect(sidecar.admin_address.parse().unwrap());
    events.send("GET /api/v1/events HTTP/1.1\r\nhost: a\r\n\r\n");
    assert!(events.reads_until("memory_level_changed"));
}

#[test]
fn tls_handshakes_that_stop_half_way_do_not_exceed_the_budget() {
    let (authority, app) = (CertificateAuthority::new(), ScriptedBackend::healthy());
    authority.write("server", &authority.issue(&["shop.test"]));
    let directory = TempDirectory::new();
    let policy = PolicyBuilder::to_backend(&app).listener_fields(authority.listener_tls(""));
    directory.write("policy.yaml", &policy.build());
    let sidecar = SidecarProcess::start_with_arguments(&directory, &["--memory-budget", "16Mi"]);
    let silent = attack(sidecar.listener_address, 2_000, b"");
    // The handshakes start at the same moment, when all connections exist.
    let config = authority.client_config(None, &[b"h2"]);
    let name = "shop.test".try_into().unwrap();
    let mut client_hello = Vec::new();
    let mut session = ClientConnection::new(config, name).unwrap();
    session.write_tls(&mut client_hello).unwrap();
    for mut connection in &silent {
        // The sidecar may have closed it.
        _ = connection.write(&client_hello);
    }
    let closed = r#"outrigger_memory_measures_total{measure="handshake_closed"}"#;
    let highest = highest_use(&sidecar, || sidecar.metric(closed) > 0.0);
    assert!(
        highest <= f64::from(16 << 20),
        "{highest} bytes were in use"
    );
}

#[test]
fn request_heads_that_never_end_do_not_exceed_the_budget_on_http2_either() {
    let app = ScriptedBackend::healthy();
    let directory = write_policy(&app);
    let sidecar = SidecarProcess::start_with_arguments(&directory, &["--memory-budget", "8Mi"]);
    let (address, bytes) = (sidecar.listener_address, endless_continuation());
    let highest = thread::scope(|scope| {
        let flood = scope.spawn(|| flood(address, 200, &bytes));
        highest_use(&sidecar, || flood.is_finished())
    });
    // The flood could fill 200 MiB. The budget may be exceeded for a short time.
    assert!(
        highest <= f64::from(12 << 20),
        "{highest} bytes were in use"
    );
}

#[test]
fn policies_do_not_count_however_often_they_are_reloaded() {
    let app = ScriptedBackend::healthy();
    let directory = TempDirectory::new();
    let write = |path: usize| {
        let mut policy = PolicyBuilder::to_backend(&app);
        for number in 0..300 {
            let fields = format!(
                "listeners: [inbound], matches: [{{path: {{value: /{path}/{number}}}}}], \
                 backendRefs: [{{name: app}}]"
            );
            policy = policy.route(&format!("route-{number}"), &fields);
        }
        directory.write("policy.yaml", &policy.build());
    };
    write(0);
    let sidecar = SidecarProcess::start(&directory);
    for generation in 2..10_usize {
        write(generation);
        sidecar.send_signal("-HUP");
        eventually("the policies are reloaded", || {
            let mut client = Client::connect(sidecar.listener_address);
            client.get("/");
            #[expect(clippy::cast_precision_loss, reason = "a small number")]
            let is_reloaded = sidecar.metric("outrigger_policy_generation") >= generation as f64;
            is_reloaded
        });
    }
    eventually("the bytes of the policies do not count", || {
        sidecar.metric("outrigger_memory_used_bytes") < f64::from(1 << 20)
    });
}

#[test]
fn a_memory_budget_that_is_too_small_or_no_size_is_refused() {
    for (budget, reason) in [("1Mi", "must be at least 4Mi"), ("lots", "lots")] {
        let output = Command::new(env!("CARGO_BIN_EXE_outrigger"))
            .args(["run", "--memory-budget", budget])
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(reason), "{budget}: {error}");
        assert_eq!(output.status.code(), Some(64), "{budget}");
    }
}
