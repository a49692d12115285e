//! Discovery of endpoints through DNS and in files.

use crate::support::{
    ScriptedBackend, Sidecar, TempDirectory,
    backend::{ResponseGate, ok_response},
    eventually,
    name_server::{DnsBehaviour, DnsRecord, NameServer},
    policy::{PolicyBuilder, policy},
};

/// Returns a policy whose backend discovers its endpoints. `fields` are those of the backend.
fn policy_with_discovery(fields: &str) -> String {
    PolicyBuilder::new(&[]).backend_fields(fields).build()
}

const DISCOVERY_CURRENT: &str = r#"outrigger_discovery_current{backend="app"}"#;

fn readiness_report(sidecar: &Sidecar) -> String {
    sidecar.call_admin("GET", "/readyz?verbose").text()
}

fn start_with_name_server(server: &NameServer, discovery: &str) -> Sidecar {
    let directory = TempDirectory::new();
    directory.write("policy.yaml", &policy_with_discovery(discovery));
    Sidecar::start_with_settings(directory, |settings| {
        settings.name_server = Some(server.address)
    })
    .unwrap()
}

fn endpoint_addresses(sidecar: &Sidecar) -> Vec<String> {
    let backends = sidecar.admin_json("/api/v1/backends");
    let mut addresses: Vec<String> = backends[0]["endpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|endpoint| endpoint["address"].as_str().unwrap().to_owned())
        .collect();
    addresses.sort();
    addresses
}

fn localhost_record(ttl: u32) -> DnsRecord {
    DnsRecord::Address(ttl, [127, 0, 0, 1].into())
}

#[test]
fn a_dns_name_is_resolved_and_its_changes_are_applied() {
    let (server, backend) = (NameServer::start(), ScriptedBackend::healthy());
    let port = backend.address.port();
    server.set_records("pay.shop", &[localhost_record(0)]);
    let sidecar = start_with_name_server(
        &server,
        &format!("dns: {{name: pay.shop., port: {port}, minTtl: 20ms}}"),
    );
    eventually("the name is resolved", || {
        endpoint_addresses(&sidecar) == [format!("127.0.0.1:{port}")]
    });
    assert_eq!(sidecar.get("/").text(), "hello");
    server.set_records(
        "pay.shop",
        &[
            localhost_record(0),
            DnsRecord::Address(0, [127, 0, 0, 2].into()),
            DnsRecord::Address(0, std::net::Ipv6Addr::LOCALHOST.into()),
        ],
    );
    eventually("the addresses of both families are endpoints", || {
        endpoint_addresses(&sidecar)
            == [
                format!("127.0.0.1:{port}"),
                format!("127.0.0.2:{port}"),
                format!("[::1]:{port}"),
            ]
    });
    let events = sidecar.events();
    assert!(
        events
            .iter()
            .any(|event| event.contains("backend app has 3 endpoints")
                && event.contains("127.0.0.2")),
        "{events:?}"
    );
    assert!(readiness_report(&sidecar).contains("[+] endpoints-of-app: 3 known"));
}

#[test]
fn a_dns_response_is_cached_for_its_ttl() {
    let (long_server, short_server) = (NameServer::start(), NameServer::start());
    long_server.set_records("pay.shop", &[localhost_record(3_600)]);
    short_server.set_records("pay.shop", &[localhost_record(0)]);
    let [long, short] = [&long_server, &short_server].map(|server| {
        start_with_name_server(
            server,
            "dns: {name: pay.shop., port: 80, minTtl: 10ms, maxTtl: 1h}",
        )
    });
    eventually("both names are resolved", || {
        endpoint_addresses(&long).len() == 1 && endpoint_addresses(&short).len() == 1
    });
    eventually("the name with a short TTL is queried repeatedly", || {
        short_server.query_count() > 60
    });
    assert_eq!(
        long_server.query_count(),
        2,
        "the name is queried once for each address family"
    );
}

#[test]
fn the_ttl_of_a_dns_response_is_clamped_to_min_and_max_ttl() {
    let (max_ttl_server, min_ttl_server) = (NameServer::start(), NameServer::start());
    max_ttl_server.set_records("pay.shop", &[localhost_record(3_600)]);
    min_ttl_server.set_records("pay.shop", &[localhost_record(0)]);
    let _sidecars = [
        start_with_name_server(
            &max_ttl_server,
            "dns: {name: pay.shop., port: 80, minTtl: 10ms, maxTtl: 20ms}",
        ),
        start_with_name_server(
            &min_ttl_server,
            "dns: {name: pay.shop., port: 80, minTtl: 1h, maxTtl: 1h}",
        ),
    ];
    eventually(
        "the name with a short maximum TTL is queried repeatedly",
        || max_ttl_server.query_count() > 60 && min_ttl_server.query_count() > 0,
    );
    assert_eq!(
        min_ttl_server.query_count(),
        2,
        "the name is queried once for each address family"
    );
}

#[test]
fn a_failing_address_family_without_records_is_ignored() {
    for behaviour in [
        DnsBehaviour::ServerFailureForAaaa,
        DnsBehaviour::NxDomainForAaaa,
    ] {
        let server = NameServer::start();
        server.set_behaviour(behaviour);
        server.set_records("pay.shop", &[localhost_record(0)]);
        let sidecar =
            start_with_name_server(&server, "dns: {name: pay.shop., port: 80, minTtl: 10ms}");
        eventually("the name is resolved", || {
            endpoint_addresses(&sidecar) == ["127.0.0.1:80"]
        });
        server.set_records(
            "pay.shop",
            &[
                localhost_record(0),
                DnsRecord::Address(0, [127, 0, 0, 2].into()),
            ],
        );
        eventually("the change is applied", || {
            endpoint_addresses(&sidecar).len() == 2
        });
    }
}

#[test]
fn a_failing_address_family_removes_no_endpoints() {
    let server = NameServer::start();
    server.set_records(
        "pay.shop",
        &[
            localhost_record(0),
            DnsRecord::Address(0, std::net::Ipv6Addr::LOCALHOST.into()),
        ],
    );
    let sidecar = start_with_name_server(
        &server,
        "dns: {name: pay.shop., port: 80, minTtl: 10ms, maxTtl: 50ms}",
    );
    eventually("both addresses are endpoints", || {
        endpoint_addresses(&sidecar).len() == 2
    });
    server.set_behaviour(DnsBehaviour::ServerFailureForAaaa);
    eventually("discovery is not current", || {
        sidecar.metric(DISCOVERY_CURRENT) == 0.0
    });
    assert_eq!(endpoint_addresses(&sidecar).len(), 2);
}

#[test]
fn readiness_waits_for_the_first_dns_response_and_accepts_a_failure() {
    let server = NameServer::start();
    server.set_behaviour(DnsBehaviour::Silent);
    let sidecar = start_with_name_server(
        &server,
        "dns: {name: pay.shop., port: 80, minTtl: 10ms, maxTtl: 50ms}",
    );
    eventually("the name is queried", || server.query_count() > 0);
    let not_ready = sidecar.call_admin("GET", "/readyz?verbose");
    assert!(
        not_ready.status == 503
            && not_ready
                .text()
                .contains("the first endpoints of app are not known yet"),
        "{}",
        not_ready.text()
    );
    server.set_behaviour(DnsBehaviour::ServerFailure);
    eventually("the instance is ready after a failed resolution", || {
        sidecar.call_admin("GET", "/readyz").status == 200
    });
}

#[test]
fn endpoints_are_retained_until_a_changed_discovery_source_resolves() {
    let (server, backend) = (NameServer::start(), ScriptedBackend::healthy());
    let directory = TempDirectory::new();
    directory.write("policy.yaml", &policy(&[backend.address], ""));
    let sidecar = Sidecar::start_with_settings(directory, |settings| {
        settings.name_server = Some(server.address)
    })
    .unwrap();
    assert_eq!(sidecar.get("/").text(), "hello");
    assert_eq!(
        sidecar
            .reload(&policy_with_discovery(
                "dns: {name: nowhere.shop., port: 80, minTtl: 10ms}"
            ))
            .status,
        200
    );
    eventually("readiness reports that the name does not exist", || {
        readiness_report(&sidecar).contains("nowhere.shop. does not exist")
    });
    assert_eq!(sidecar.get("/").text(), "hello");
    server.set_records(
        "elsewhere.shop",
        &[DnsRecord::Address(0, [127, 0, 0, 2].into())],
    );
    sidecar.reload(&policy_with_discovery(
        "dns: {name: elsewhere.shop., port: 80, minTtl: 10ms}",
    ));
    eventually("the new address is the endpoint", || {
        endpoint_addresses(&sidecar) == ["127.0.0.2:80"]
    });
    sidecar.reload(&policy(&[backend.address], ""));
    eventually("the metric of discovery has no value", || {
        sidecar.metric(DISCOVERY_CURRENT).is_nan()
    });
}

#[test]
fn the_last_valid_endpoints_are_retained_when_resolution_fails() {
    let (server, backend) = (NameServer::start(), ScriptedBackend::healthy());
    server.set_records("pay.shop", &[localhost_record(0)]);
    let sidecar = start_with_name_server(
        &server,
        &format!(
            "dns: {{name: pay.shop., port: {}, minTtl: 20ms, maxTtl: 50ms}}",
            backend.address.port()
        ),
    );
    eventually("the name is resolved", || {
        endpoint_addresses(&sidecar).len() == 1
    });
    assert_eq!(sidecar.metric(DISCOVERY_CURRENT), 1.0);
    server.set_behaviour(DnsBehaviour::ServerFailure);
    eventually("discovery is not current", || {
        sidecar.metric(DISCOVERY_CURRENT) == 0.0
    });
    assert_eq!(sidecar.get("/").text(), "hello");
    server.set_behaviour(DnsBehaviour::Responds);
    eventually("discovery is current again", || {
        sidecar.metric(DISCOVERY_CURRENT) == 1.0
    });
    server.set_records("pay.shop", &[]);
    eventually("readiness reports that the name does not exist", || {
        readiness_report(&sidecar).contains("pay.shop. does not exist")
    });
    assert_eq!(sidecar.get("/").text(), "hello");
    assert_eq!(
        sidecar.call_admin("GET", "/readyz").status,
        200,
        "a backend is not a readiness gate by default"
    );
    let events = sidecar.events();
    assert!(
        events
            .iter()
            .any(|event| event.contains("discovery of app failed")
                && event.contains("does not exist")),
        "{events:?}"
    );
    let failure_count = events
        .iter()
        .filter(|event| event.contains("does not exist"))
        .count();
    assert_eq!(failure_count, 1, "the failure is logged once");
}

#[test]
fn srv_records_set_ports_weights_and_priorities() {
    let (server, first, second, spare) = (
        NameServer::start(),
        ScriptedBackend::healthy(),
        ScriptedBackend::healthy(),
        ScriptedBackend::responding_with(|_| ok_response("spare")),
    );
    let port = |backend: &ScriptedBackend| backend.address.port();
    server.set_records("one.shop", &[localhost_record(0)]);
    let services = [
        DnsRecord::Srv(0, 10, 9, port(&first), "one.shop."),
        DnsRecord::Srv(0, 10, 1, port(&second), "one.shop."),
        DnsRecord::Srv(0, 20, 1, port(&spare), "one.shop."),
    ];
    server.set_records("_http._tcp.pay.shop", &services);
    let sidecar = start_with_name_server(
        &server,
        "dns: {name: _http._tcp.pay.shop., type: SRV, minTtl: 20ms}, \
         loadBalancer: {type: RoundRobin}",
    );
    eventually("the name is resolved", || {
        endpoint_addresses(&sidecar).len() == 3
    });
    let mut client = sidecar.client();
    for _ in 0..100 {
        assert_eq!(client.get("/").text(), "hello");
    }
    assert_eq!(
        (
            first.requests().len(),
            second.requests().len(),
            spare.requests().len()
        ),
        (90, 10, 0)
    );
    // A target without an address record is ignored.
    server.set_records(
        "_http._tcp.pay.shop",
        &[
            services[2].clone(),
            DnsRecord::Srv(0, 10, 1, 80, "removed.shop."),
        ],
    );
    eventually("the endpoint of the other priority is used", || {
        sidecar.get("/").text() == "spare"
    });
}

#[test]
fn a_name_that_does_not_exist_is_reported_and_leaves_its_backend_empty() {
    let server = NameServer::start();
    let sidecar = start_with_name_server(
        &server,
        "dns: {name: nowhere.shop., port: 80, minTtl: 20ms}",
    );
    eventually("readiness reports that the name does not exist", || {
        readiness_report(&sidecar).contains("nowhere.shop. does not exist")
    });
    let rejection = sidecar.get("/");
    assert_eq!(
        (rejection.status, rejection.reason()),
        (503, "no_healthy_endpoint:app")
    );
}

#[test]
fn an_endpoints_file_is_watched_and_never_applied_partially() {
    let (backend, other) = (
        ScriptedBackend::healthy(),
        ScriptedBackend::responding_with(|_| ok_response("other")),
    );
    let files = TempDirectory::new();
    let path = files.path().join("endpoints.yaml");
    files.write("endpoints.yaml", &format!("- {}\n", backend.address));
    let sidecar = Sidecar::start(&policy_with_discovery(&format!(
        "endpointsFile: \"{}\"",
        path.display()
    )));
    eventually("the file is read", || {
        endpoint_addresses(&sidecar) == [backend.address.to_string()]
    });
    assert_eq!(sidecar.get("/").text(), "hello");
    for (content, error) in [
        ("[\"127.0.0.1:1\", ", "neither YAML nor JSON"),
        ("", "one document"),
        ("- nonsense\n", "endpoints.yaml:1:3"),
    ] {
        files.write("endpoints.yaml", content);
        eventually("readiness reports the error and its location", || {
            readiness_report(&sidecar).contains(error)
        });
        assert_eq!(sidecar.metric(DISCOVERY_CURRENT), 0.0);
        assert_eq!(
            sidecar.get("/").text(),
            "hello",
            "the last valid endpoints are retained"
        );
    }
    files.write(
        "endpoints.yaml",
        &format!("{{\"endpoints\": [\"{}\"]}}", other.address),
    );
    eventually("the new endpoint is used", || {
        sidecar.get("/").text() == "other"
    });
    assert!(
        sidecar
            .events()
            .iter()
            .any(|event| event.contains("discovery of app works again"))
    );
    std::fs::remove_file(&path).unwrap();
    eventually("readiness reports the removed file", || {
        readiness_report(&sidecar).contains("cannot be read")
    });
    assert_eq!(sidecar.get("/").text(), "other");
}

#[test]
fn requests_in_flight_to_a_removed_endpoint_complete() {
    let gate = ResponseGate::new();
    let backend_gate = gate.clone();
    let removed = ScriptedBackend::start(move |mut connection| {
        connection.read_request();
        backend_gate.wait_for_release();
        connection.send(ok_response("late"));
        connection.wait_for_close();
    });
    let added = ScriptedBackend::responding_with(|_| ok_response("new"));
    let files = TempDirectory::new();
    files.write("endpoints.json", &format!("[\"{}\"]", removed.address));
    let sidecar = Sidecar::start(&policy_with_discovery(&format!(
        "endpointsFile: \"{}\"",
        files.path().join("endpoints.json").display()
    )));
    eventually("the file is read", || {
        endpoint_addresses(&sidecar).len() == 1
    });
    let mut client = sidecar.client();
    client.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("the request is in flight", || removed.requests().len() == 1);
    files.write("endpoints.json", &format!("[\"{}\"]", added.address));
    eventually("the new endpoint replaces the removed one", || {
        endpoint_addresses(&sidecar) == [added.address.to_string()]
    });
    assert_eq!(sidecar.get("/").text(), "new");
    gate.release_one();
    assert_eq!(client.read_response().text(), "late");
    assert_eq!(removed.requests().len(), 1);
}
