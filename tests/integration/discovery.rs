//! Endpoints that are found: by name, and in files.

use crate::support::{
    Backend, Directory, Sidecar,
    backend::{Gate, answer, ok},
    eventually,
    name_server::{Behaviour, NameServer, Record},
    sidecar::policy,
};

/// Policies whose backend finds its endpoints.
fn found_by(discovery: &str) -> String {
    policy(&[], "").replace("endpoints: []", discovery)
}

fn by_name(server: &NameServer, discovery: &str) -> Sidecar {
    let directory = Directory::new();
    directory.write("policy.yaml", &found_by(discovery));
    Sidecar::start_in(directory, |settings| {
        settings.name_server = Some(server.address)
    })
    .unwrap()
}

fn known(sidecar: &Sidecar) -> Vec<String> {
    let backends = sidecar.json("/api/v1/backends");
    let mut known: Vec<String> = backends[0]["endpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|endpoint| endpoint["address"].as_str().unwrap().to_owned())
        .collect();
    known.sort();
    known
}

fn localhost(ttl: u32) -> Record {
    Record::Address(ttl, [127, 0, 0, 1].into())
}

#[test]
fn a_name_is_resolved_and_followed() {
    let (server, backend) = (NameServer::start(), Backend::healthy());
    let port = backend.address.port();
    server.set("pay.shop", &[localhost(0)]);
    let sidecar = by_name(
        &server,
        &format!("dns: {{name: pay.shop., port: {port}, minTtl: 20ms}}"),
    );
    eventually("it is resolved", || {
        known(&sidecar) == [format!("127.0.0.1:{port}")]
    });
    assert_eq!(sidecar.get("/").text(), "hello");
    server.set(
        "pay.shop",
        &[
            localhost(0),
            Record::Address(0, [127, 0, 0, 2].into()),
            Record::Address(0, std::net::Ipv6Addr::LOCALHOST.into()),
        ],
    );
    eventually("all families are taken", || {
        known(&sidecar)
            == [
                format!("127.0.0.1:{port}"),
                format!("127.0.0.2:{port}"),
                format!("[::1]:{port}"),
            ]
    });
    let told = sidecar.events();
    assert!(
        told.iter()
            .any(|event| event.contains("backend app has 3 endpoints")
                && event.contains("127.0.0.2")),
        "{told:?}"
    );
    assert!(
        sidecar
            .admin("GET", "/readyz?verbose")
            .text()
            .contains("[+] endpoints-of-app: 3 known")
    );
}

#[test]
fn an_answer_is_believed_as_long_as_it_says() {
    let (long_server, short_server) = (NameServer::start(), NameServer::start());
    long_server.set("pay.shop", &[localhost(3_600)]);
    short_server.set("pay.shop", &[localhost(0)]);
    let [long, short] = [&long_server, &short_server].map(|server| {
        by_name(
            server,
            "dns: {name: pay.shop., port: 80, minTtl: 10ms, maxTtl: 1h}",
        )
    });
    eventually("both are resolved", || {
        known(&long).len() == 1 && known(&short).len() == 1
    });
    eventually("the short one is asked for again and again", || {
        short_server.asked() > 60
    });
    assert_eq!(long_server.asked(), 2, "once for each family");
}

#[test]
fn bounds_hold_whatever_an_answer_says() {
    let (server, patient) = (NameServer::start(), NameServer::start());
    server.set("pay.shop", &[localhost(3_600)]);
    patient.set("pay.shop", &[localhost(0)]);
    let _sidecars = [
        by_name(
            &server,
            "dns: {name: pay.shop., port: 80, minTtl: 10ms, maxTtl: 20ms}",
        ),
        by_name(
            &patient,
            "dns: {name: pay.shop., port: 80, minTtl: 1h, maxTtl: 1h}",
        ),
    ];
    eventually("one is asked for again and again", || {
        server.asked() > 60 && patient.asked() > 0
    });
    assert_eq!(patient.asked(), 2, "once for each family");
}

#[test]
fn a_family_that_a_name_never_had_does_not_count() {
    for behaviour in [Behaviour::FailsForIpv6, Behaviour::DeniesIpv6] {
        let server = NameServer::start();
        server.behave(behaviour);
        server.set("pay.shop", &[localhost(0)]);
        let sidecar = by_name(&server, "dns: {name: pay.shop., port: 80, minTtl: 10ms}");
        eventually("it is resolved", || known(&sidecar) == ["127.0.0.1:80"]);
        server.set(
            "pay.shop",
            &[localhost(0), Record::Address(0, [127, 0, 0, 2].into())],
        );
        eventually("it is followed", || known(&sidecar).len() == 2);
    }
}

#[test]
fn a_family_that_fails_takes_no_endpoints_along() {
    let server = NameServer::start();
    server.set(
        "pay.shop",
        &[
            localhost(0),
            Record::Address(0, std::net::Ipv6Addr::LOCALHOST.into()),
        ],
    );
    let sidecar = by_name(
        &server,
        "dns: {name: pay.shop., port: 80, minTtl: 10ms, maxTtl: 50ms}",
    );
    eventually("both are there", || known(&sidecar).len() == 2);
    server.behave(Behaviour::FailsForIpv6);
    eventually("the failure is noticed", || {
        sidecar.metric(r#"outrigger_discovery_current{backend="app"}"#) == 0.0
    });
    assert_eq!(known(&sidecar).len(), 2);
}

#[test]
fn readiness_waits_for_the_first_answer_whatever_it_is() {
    let server = NameServer::start();
    server.behave(Behaviour::Silent);
    let sidecar = by_name(
        &server,
        "dns: {name: pay.shop., port: 80, minTtl: 10ms, maxTtl: 50ms}",
    );
    eventually("it is asked for", || server.asked() > 0);
    let unready = sidecar.admin("GET", "/readyz?verbose");
    assert!(
        unready.status == 503
            && unready
                .text()
                .contains("the first answer is awaited about app"),
        "{}",
        unready.text()
    );
    server.behave(Behaviour::Fails);
    eventually("a failure is an answer", || {
        sidecar.admin("GET", "/readyz").status == 200
    });
}

#[test]
fn endpoints_stay_when_the_policy_says_to_look_for_them_elsewhere() {
    let (server, backend) = (NameServer::start(), Backend::healthy());
    let directory = Directory::new();
    directory.write("policy.yaml", &policy(&[backend.address], ""));
    let sidecar = Sidecar::start_in(directory, |settings| {
        settings.name_server = Some(server.address)
    })
    .unwrap();
    assert_eq!(sidecar.get("/").text(), "hello");
    assert_eq!(
        sidecar
            .reload(&found_by(
                "dns: {name: nowhere.shop., port: 80, minTtl: 10ms}"
            ))
            .status,
        200
    );
    eventually("it is said", || {
        sidecar
            .admin("GET", "/readyz?verbose")
            .text()
            .contains("nowhere.shop. does not exist")
    });
    assert_eq!(sidecar.get("/").text(), "hello");
    server.set(
        "elsewhere.shop",
        &[Record::Address(0, [127, 0, 0, 2].into())],
    );
    sidecar.reload(&found_by(
        "dns: {name: elsewhere.shop., port: 80, minTtl: 10ms}",
    ));
    eventually("the new ones are taken", || {
        known(&sidecar) == ["127.0.0.2:80"]
    });
    sidecar.reload(&policy(&[backend.address], ""));
    eventually("nothing is looked for any more", || {
        sidecar
            .metric(r#"outrigger_discovery_current{backend="app"}"#)
            .is_nan()
    });
}

#[test]
fn the_last_good_answer_stays_when_the_name_server_fails_or_the_name_is_gone() {
    let (server, backend) = (NameServer::start(), Backend::healthy());
    server.set("pay.shop", &[localhost(0)]);
    let sidecar = by_name(
        &server,
        &format!(
            "dns: {{name: pay.shop., port: {}, minTtl: 20ms, maxTtl: 50ms}}",
            backend.address.port()
        ),
    );
    eventually("it is resolved", || known(&sidecar).len() == 1);
    assert_eq!(
        sidecar.metric(r#"outrigger_discovery_current{backend="app"}"#),
        1.0
    );
    server.behave(Behaviour::Fails);
    eventually("the failure is noticed", || {
        sidecar.metric(r#"outrigger_discovery_current{backend="app"}"#) == 0.0
    });
    assert_eq!(sidecar.get("/").text(), "hello");
    server.behave(Behaviour::Answers);
    eventually("it is current again", || {
        sidecar.metric(r#"outrigger_discovery_current{backend="app"}"#) == 1.0
    });
    server.set("pay.shop", &[]);
    eventually("the name is gone", || {
        sidecar
            .admin("GET", "/readyz?verbose")
            .text()
            .contains("pay.shop. does not exist")
    });
    assert_eq!(sidecar.get("/").text(), "hello");
    assert_eq!(
        sidecar.admin("GET", "/readyz").status,
        200,
        "a dependency does not gate"
    );
    let told = sidecar.events();
    assert!(
        told.iter()
            .any(|event| event.contains("cannot be found") && event.contains("does not exist")),
        "{told:?}"
    );
    assert!(
        told.iter()
            .filter(|event| event.contains("does not exist"))
            .count()
            == 1,
        "told once"
    );
}

#[test]
fn a_service_brings_ports_weights_and_priorities() {
    let (server, first, second, spare) = (
        NameServer::start(),
        Backend::healthy(),
        Backend::healthy(),
        Backend::answering(|_| ok("spare")),
    );
    let port = |backend: &Backend| backend.address.port();
    server.set("one.shop", &[localhost(0)]);
    let services = [
        Record::Service(0, 10, 9, port(&first), "one.shop."),
        Record::Service(0, 10, 1, port(&second), "one.shop."),
        Record::Service(0, 20, 1, port(&spare), "one.shop."),
    ];
    server.set("_http._tcp.pay.shop", &services);
    let sidecar = by_name(
        &server,
        "dns: {name: _http._tcp.pay.shop., type: SRV, minTtl: 20ms}, loadBalancer: {type: RoundRobin}",
    );
    eventually("it is resolved", || known(&sidecar).len() == 3);
    let mut client = sidecar.client();
    for _ in 0..100 {
        assert_eq!(client.get("/").text(), "hello");
    }
    assert_eq!(
        (first.seen().len(), second.seen().len(), spare.seen().len()),
        (90, 10, 0)
    );
    // One that has just gone is passed over.
    server.set(
        "_http._tcp.pay.shop",
        &[
            services[2].clone(),
            Record::Service(0, 10, 1, 80, "gone.shop."),
        ],
    );
    eventually("the spare is alone", || sidecar.get("/").text() == "spare");
}

#[test]
fn a_name_that_never_existed_leaves_the_rest_alone() {
    let server = NameServer::start();
    let sidecar = by_name(
        &server,
        "dns: {name: nowhere.shop., port: 80, minTtl: 20ms}",
    );
    eventually("it is said", || {
        sidecar
            .admin("GET", "/readyz?verbose")
            .text()
            .contains("nowhere.shop. does not exist")
    });
    let refusal = sidecar.get("/");
    assert_eq!(
        (refusal.status, refusal.reason()),
        (503, "no_healthy_endpoint:app")
    );
}

#[test]
fn a_file_of_endpoints_is_followed_and_never_half_taken() {
    let (one, other) = (Backend::healthy(), Backend::answering(|_| ok("other")));
    let files = Directory::new();
    let path = files.path().join("endpoints.yaml");
    files.write("endpoints.yaml", &format!("- {}\n", one.address));
    let sidecar = Sidecar::start(&found_by(&format!("endpointsFile: \"{}\"", path.display())));
    eventually("it is read", || {
        known(&sidecar) == [one.address.to_string()]
    });
    assert_eq!(sidecar.get("/").text(), "hello");
    for (half, why) in [
        ("[\"127.0.0.1:1\", ", "neither YAML nor JSON"),
        ("", "one document"),
        ("- nonsense\n", "endpoints.yaml:1:3"),
    ] {
        files.write("endpoints.yaml", half);
        eventually("the fault is told with its place", || {
            sidecar.admin("GET", "/readyz?verbose").text().contains(why)
        });
        assert_eq!(
            sidecar.metric(r#"outrigger_discovery_current{backend="app"}"#),
            0.0
        );
        assert_eq!(sidecar.get("/").text(), "hello", "the last good one stays");
    }
    files.write(
        "endpoints.yaml",
        &format!("{{\"endpoints\": [\"{}\"]}}", other.address),
    );
    eventually("the new one is taken", || {
        sidecar.get("/").text() == "other"
    });
    assert!(
        sidecar
            .events()
            .iter()
            .any(|event| event.contains("found again"))
    );
    std::fs::remove_file(&path).unwrap();
    eventually("that it is gone is told", || {
        sidecar
            .admin("GET", "/readyz?verbose")
            .text()
            .contains("cannot be read")
    });
    assert_eq!(sidecar.get("/").text(), "other");
}

#[test]
fn what_is_in_flight_at_an_endpoint_that_left_is_finished() {
    let gate = Gate::new();
    let there = gate.clone();
    let leaving = Backend::start(move |mut connection| {
        connection.request();
        there.pass();
        connection.send(ok("late"));
        connection.wait_for_close();
    });
    let staying = Backend::answering(|_| answer(200, "staying"));
    let files = Directory::new();
    files.write("endpoints.json", &format!("[\"{}\"]", leaving.address));
    let sidecar = Sidecar::start(&found_by(&format!(
        "endpointsFile: \"{}\"",
        files.path().join("endpoints.json").display()
    )));
    eventually("it is read", || known(&sidecar).len() == 1);
    let mut client = sidecar.client();
    client.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("it is in flight", || leaving.seen().len() == 1);
    files.write("endpoints.json", &format!("[\"{}\"]", staying.address));
    eventually("the other takes over", || {
        known(&sidecar) == [staying.address.to_string()]
    });
    assert_eq!(sidecar.get("/").text(), "staying");
    gate.open();
    assert_eq!(client.answer().text(), "late");
    assert_eq!(leaving.seen().len(), 1);
}
