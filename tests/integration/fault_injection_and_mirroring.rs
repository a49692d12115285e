//! Fault injection and request mirroring.

use std::time::{Duration, Instant};

use crate::support::{
    ScriptedBackend, Sidecar,
    backend::{ResponseGate, ok_response},
    eventually,
    http2::Http2Client,
    policy::PolicyBuilder,
};

const FAR_FUTURE: &str = "2999-01-01T00:00:00Z";

fn policy_with_route_fields(backend: &ScriptedBackend, fields: &str) -> String {
    PolicyBuilder::to_backend(backend)
        .route_fields(fields)
        .build()
}

#[test]
fn an_abort_responds_in_http_or_grpc_and_never_reaches_the_backend() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy_with_route_fields(
        &backend,
        &format!("faultInjection: {{until: {FAR_FUTURE}, abort: {{httpStatus: 418}}}}"),
    ));
    let response = sidecar.get("/");
    assert_eq!(
        (response.status, response.reason()),
        (418, "fault_injected:in")
    );
    let client = Http2Client::connect(sidecar.address("inbound"));
    assert_eq!(
        client
            .call_grpc("/shop.Payments/Charge", None)
            .grpc_status(),
        Some("2")
    );
    let sidecar = Sidecar::start(&policy_with_route_fields(
        &backend,
        &format!("faultInjection: {{until: {FAR_FUTURE}, abort: {{grpcStatus: unavailable}}}}"),
    ));
    let client = Http2Client::connect(sidecar.address("inbound"));
    assert_eq!(
        client
            .call_grpc("/shop.Payments/Charge", None)
            .grpc_status(),
        Some("14")
    );
    assert_eq!(backend.requests().len(), 0);
}

#[test]
fn a_delay_precedes_the_request() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy_with_route_fields(
        &backend,
        &format!("faultInjection: {{until: {FAR_FUTURE}, delay: {{fixedDelay: 80ms}}}}"),
    ));
    let started_at = Instant::now();
    assert_eq!(sidecar.get("/").text(), "hello");
    assert!(started_at.elapsed() >= Duration::from_millis(80));
}

#[test]
fn an_abort_affects_its_percentage_of_the_requests() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy_with_route_fields(
        &backend,
        &format!(
            "faultInjection: {{until: {FAR_FUTURE}, abort: {{httpStatus: 503, percentage: 30}}}}"
        ),
    ));
    let mut client = sidecar.client();
    let aborted = (0..1_000).filter(|_| client.get("/").status == 503).count();
    // The bounds are six standard deviations of a binomial distribution around 300.
    assert!((213..=387).contains(&aborted), "{aborted}");
}

#[test]
fn a_fault_past_its_until_time_is_not_injected() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy_with_route_fields(
        &backend,
        "faultInjection: {until: 2020-01-01T00:00:00Z, abort: {httpStatus: 503}}",
    ));
    assert_eq!(sidecar.get("/").status, 200);
}

#[test]
fn active_faults_are_bounded_by_max_active_faults() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy_with_route_fields(
        &backend,
        &format!(
            "faultInjection: {{until: {FAR_FUTURE}, maxActiveFaults: 1, delay: {{fixedDelay: 5m}}}}"
        ),
    ));
    let mut waiting = sidecar.client();
    waiting.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("the first request is delayed", || sidecar.in_flight() == 1);
    assert_eq!(
        sidecar.get("/").status,
        200,
        "other requests are not delayed"
    );
    drop(waiting);
    eventually("nothing is in flight", || sidecar.in_flight() == 0);
    let mut next = sidecar.client();
    next.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("the released fault delays the next request", || {
        sidecar.in_flight() == 1
    });
    assert_eq!(sidecar.get("/").status, 200);
}

#[test]
fn a_reload_retains_the_count_of_active_faults() {
    let backend = ScriptedBackend::healthy();
    let text = policy_with_route_fields(
        &backend,
        &format!(
            "faultInjection: {{until: {FAR_FUTURE}, maxActiveFaults: 1, delay: {{fixedDelay: 5m}}}}"
        ),
    );
    let sidecar = Sidecar::start(&text);
    let mut waiting = sidecar.client();
    waiting.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("the first request is delayed", || sidecar.in_flight() == 1);
    assert_eq!(
        sidecar.reload(&format!("# another version\n{text}")).status,
        200
    );
    assert_eq!(
        sidecar.get("/").status,
        200,
        "the delayed request still counts after the reload"
    );
}

#[test]
fn a_shadow_fault_is_counted_and_not_injected() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy_with_route_fields(
        &backend,
        &format!(
            "faultInjection: {{mode: Shadow, until: {FAR_FUTURE}, abort: {{httpStatus: 503}}}}"
        ),
    ));
    assert_eq!(sidecar.get("/").status, 200);
    assert_eq!(
        sidecar.metric(r#"outrigger_shadow_refusals_total{route="in",reason="fault_injected"}"#),
        1.0
    );
}

fn policy_with_mirror(
    app: &ScriptedBackend,
    mirror: &ScriptedBackend,
    mirror_fields: &str,
    sections: &str,
) -> String {
    let filter = format!(
        "{{type: RequestMirror, requestMirror: {{backendRef: {{name: other}}{mirror_fields}}}}}"
    );
    PolicyBuilder::to_backend(app)
        .scripted_backend("other", mirror)
        .route_fields(format!("filters: [{filter}]"))
        .sections(sections)
        .build()
}

fn start_with_mirror(app: &ScriptedBackend, mirror: &ScriptedBackend) -> Sidecar {
    Sidecar::start(&policy_with_mirror(app, mirror, "", ""))
}

#[test]
fn a_mirrored_request_is_identical_and_its_response_is_discarded() {
    let (app, mirror) = (
        ScriptedBackend::healthy(),
        ScriptedBackend::responding_with(|_| ok_response("from the mirror")),
    );
    let sidecar = start_with_mirror(&app, &mirror);
    let mut client = sidecar.client();
    assert_eq!(client.get("/a?x=1").text(), "hello");
    assert_eq!(client.post("/pay", "order").text(), "hello");
    eventually("both mirrored requests have arrived", || {
        mirror.requests().len() == 2
    });
    let mut mirrored: Vec<(String, Vec<u8>)> = mirror
        .requests()
        .iter()
        .map(|request| (request.request_line().to_owned(), request.body.clone()))
        .collect();
    mirrored.sort();
    assert_eq!(
        mirrored,
        [
            ("GET /a?x=1 HTTP/1.1".to_owned(), Vec::new()),
            ("POST /pay HTTP/1.1".to_owned(), b"order".to_vec())
        ]
    );
    eventually("both mirrored requests are counted", || {
        sidecar.metric(r#"outrigger_mirrored_requests_total{backend="other",result="sent"}"#) == 2.0
    });
}

#[test]
fn a_slow_or_unreachable_mirror_affects_no_request_and_mirroring_is_bounded() {
    let gate = ResponseGate::new();
    let backend_gate = gate.clone();
    let (app, stuck) = (
        ScriptedBackend::healthy(),
        ScriptedBackend::responding_with(move |_| {
            backend_gate.wait_for_release();
            ok_response("slow")
        }),
    );
    let sidecar = Sidecar::start(&policy_with_mirror(
        &app,
        &stuck,
        "",
        "  defaults: {timeouts: {request: 0s, backendRequest: 0s}}\n",
    ));
    let mut client = sidecar.client();
    for _ in 0..200 {
        assert_eq!(client.get("/").status, 200);
    }
    assert!(
        sidecar.metric(r#"outrigger_mirrored_requests_total{backend="other",result="skipped"}"#)
            >= 72.0,
        "at most 128 mirrored requests are in flight"
    );
    (0..200).for_each(|_| gate.release_one());
    let unreachable = ScriptedBackend::healthy();
    let sidecar = start_with_mirror(&app, &unreachable);
    drop(unreachable);
    assert_eq!(sidecar.get("/").status, 200);
}

#[test]
fn a_request_with_an_unbuffered_body_or_at_zero_percent_is_not_mirrored() {
    let (app, mirror) = (ScriptedBackend::healthy(), ScriptedBackend::healthy());
    let sidecar = start_with_mirror(&app, &mirror);
    let body = "x".repeat((64 << 10) + 1);
    assert_eq!(sidecar.client().post("/", &body).status, 200);
    eventually("the skipped request is counted", || {
        sidecar.metric(r#"outrigger_mirrored_requests_total{backend="other",result="skipped"}"#)
            == 1.0
    });
    let sidecar = Sidecar::start(&policy_with_mirror(&app, &mirror, ", percent: 0", ""));
    assert_eq!(sidecar.get("/").status, 200);
    assert_eq!(mirror.requests().len(), 0);
}
