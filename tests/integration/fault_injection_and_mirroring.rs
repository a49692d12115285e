//! Faults on purpose, and copies for others.

use std::time::{Duration, Instant};

use crate::support::{
    ScriptedBackend, Sidecar,
    backend::{ResponseGate, ok_response},
    eventually,
    http2::Http2Client,
    policy::{policy, with_backend},
};

const FAR_FUTURE: &str = "2999-01-01T00:00:00Z";

/// The usual policy with this in its route.
fn policy_with_route_fields(backend: &ScriptedBackend, section: &str) -> String {
    let text = policy(&[backend.address], "");
    assert!(text.contains("- {name: in,"), "{text}");
    text.replace("- {name: in,", &format!("- {{name: in, {section},"))
}

#[test]
fn an_abort_responds_in_http_or_grpc_and_never_reaches_the_app() {
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
fn a_delay_precedes_the_request_and_an_abort_affects_its_percentage() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy_with_route_fields(
        &backend,
        &format!("faultInjection: {{until: {FAR_FUTURE}, delay: {{fixedDelay: 80ms}}}}"),
    ));
    let began = Instant::now();
    assert_eq!(sidecar.get("/").text(), "hello");
    assert!(began.elapsed() >= Duration::from_millis(80));
    let sidecar = Sidecar::start(&policy_with_route_fields(
        &backend,
        &format!(
            "faultInjection: {{until: {FAR_FUTURE}, abort: {{httpStatus: 503, percentage: 30}}}}"
        ),
    ));
    let mut client = sidecar.client();
    let aborted = (0..1_000).filter(|_| client.get("/").status == 503).count();
    // Six standard deviations of a binomial around 300.
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
    eventually("one is kept waiting", || sidecar.in_flight() == 1);
    assert_eq!(sidecar.get("/").status, 200, "the others pass");
    drop(waiting);
    eventually("nobody waits", || sidecar.in_flight() == 0);
    let mut next = sidecar.client();
    next.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("the place that was given back is taken", || {
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
    eventually("one is kept waiting", || sidecar.in_flight() == 1);
    assert_eq!(
        sidecar
            .reload(&text.replace("metadata", "# again\nmetadata"))
            .status,
        200
    );
    assert_eq!(
        sidecar.get("/").status,
        200,
        "there is still one place, and it is taken"
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
    mirrors: &str,
    sections: &str,
) -> String {
    with_backend("other", mirror, &policy(&[app.address], sections)).replace(
        "- {name: in,",
        &format!("- {{name: in, filters: [{mirrors}],"),
    )
}

fn start_with_mirror(app: &ScriptedBackend, mirror: &ScriptedBackend, mirrors: &str) -> Sidecar {
    Sidecar::start(&policy_with_mirror(app, mirror, mirrors, ""))
}

const MIRROR_FILTER: &str = "{type: RequestMirror, requestMirror: {backendRef: {name: other}}}";

#[test]
fn a_mirrored_request_is_identical_and_its_response_is_discarded() {
    let (app, mirror) = (
        ScriptedBackend::healthy(),
        ScriptedBackend::responding_with(|_| ok_response("from the mirror")),
    );
    let sidecar = start_with_mirror(&app, &mirror, MIRROR_FILTER);
    let mut client = sidecar.client();
    assert_eq!(client.get("/a?x=1").text(), "hello");
    assert_eq!(client.post("/pay", "money").text(), "hello");
    eventually("both came", || mirror.requests().len() == 2);
    let mut seen: Vec<(String, Vec<u8>)> = mirror
        .requests()
        .iter()
        .map(|seen| (seen.request_line().to_owned(), seen.body.clone()))
        .collect();
    seen.sort();
    assert_eq!(
        seen,
        [
            ("GET /a?x=1 HTTP/1.1".to_owned(), Vec::new()),
            ("POST /pay HTTP/1.1".to_owned(), b"money".to_vec())
        ]
    );
    eventually("it is counted", || {
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
            ok_response("late")
        }),
    );
    let sidecar = Sidecar::start(&policy_with_mirror(
        &app,
        &stuck,
        MIRROR_FILTER,
        "  defaults: {timeouts: {request: 0s, backendRequest: 0s}}\n",
    ));
    let mut client = sidecar.client();
    for _ in 0..200 {
        assert_eq!(client.get("/").status, 200);
    }
    assert!(
        sidecar.metric(r#"outrigger_mirrored_requests_total{backend="other",result="skipped"}"#)
            >= 72.0,
        "128 are out, and no more"
    );
    (0..200).for_each(|_| gate.release_one());
    let gone = ScriptedBackend::healthy();
    let sidecar = start_with_mirror(&app, &gone, MIRROR_FILTER);
    drop(gone);
    assert_eq!(sidecar.get("/").status, 200);
}

#[test]
fn a_request_with_an_unbuffered_body_or_at_zero_percent_is_not_mirrored() {
    let (app, mirror) = (ScriptedBackend::healthy(), ScriptedBackend::healthy());
    let sidecar = start_with_mirror(&app, &mirror, MIRROR_FILTER);
    let body = "x".repeat((64 << 10) + 1);
    assert_eq!(sidecar.client().post("/", &body).status, 200);
    eventually("it is counted", || {
        sidecar.metric(r#"outrigger_mirrored_requests_total{backend="other",result="skipped"}"#)
            == 1.0
    });
    let sidecar = start_with_mirror(
        &app,
        &mirror,
        &MIRROR_FILTER.replace("other}}", "other}, percent: 0}"),
    );
    assert_eq!(sidecar.get("/").status, 200);
    assert_eq!(mirror.requests().len(), 0);
}
