//! Faults on purpose, and copies for others.

use std::time::{Duration, Instant};

use crate::support::{
    Backend, Sidecar,
    backend::{Gate, ok},
    eventually,
    http2::Http2Client,
    sidecar::{also, policy},
};

const FAR: &str = "2999-01-01T00:00:00Z";

/// The usual policy with this in its route.
fn with_route(backend: &Backend, section: &str) -> String {
    let text = policy(&[backend.address], "");
    assert!(text.contains("- {name: in,"), "{text}");
    text.replace("- {name: in,", &format!("- {{name: in, {section},"))
}

#[test]
fn an_abort_is_answered_in_the_words_of_who_asks_and_never_reaches_the_app() {
    let backend = Backend::healthy();
    let sidecar = Sidecar::start(&with_route(
        &backend,
        &format!("faultInjection: {{until: {FAR}, abort: {{httpStatus: 418}}}}"),
    ));
    let answer = sidecar.get("/");
    assert_eq!((answer.status, answer.reason()), (418, "fault_injected:in"));
    let client = Http2Client::connect(sidecar.address("inbound"));
    assert_eq!(
        client.call("/shop.Payments/Charge", None).grpc_status(),
        Some("2")
    );
    let sidecar = Sidecar::start(&with_route(
        &backend,
        &format!("faultInjection: {{until: {FAR}, abort: {{grpcStatus: unavailable}}}}"),
    ));
    let client = Http2Client::connect(sidecar.address("inbound"));
    assert_eq!(
        client.call("/shop.Payments/Charge", None).grpc_status(),
        Some("14")
    );
    assert_eq!(backend.seen().len(), 0);
}

#[test]
fn a_delay_comes_before_the_request_and_its_share_is_kept() {
    let backend = Backend::healthy();
    let sidecar = Sidecar::start(&with_route(
        &backend,
        &format!("faultInjection: {{until: {FAR}, delay: {{fixedDelay: 80ms}}}}"),
    ));
    let began = Instant::now();
    assert_eq!(sidecar.get("/").text(), "hello");
    assert!(began.elapsed() >= Duration::from_millis(80));
    let sidecar = Sidecar::start(&with_route(
        &backend,
        &format!("faultInjection: {{until: {FAR}, abort: {{httpStatus: 503, percentage: 30}}}}"),
    ));
    let mut client = sidecar.client();
    let aborted = (0..1_000).filter(|_| client.get("/").status == 503).count();
    // Six standard deviations of a binomial around 300.
    assert!((213..=387).contains(&aborted), "{aborted}");
}

#[test]
fn a_fault_ends_by_itself_and_there_is_none_without_an_end() {
    let backend = Backend::healthy();
    let sidecar = Sidecar::start(&with_route(
        &backend,
        "faultInjection: {until: 2020-01-01T00:00:00Z, abort: {httpStatus: 503}}",
    ));
    assert_eq!(sidecar.get("/").status, 200);
}

#[test]
fn no_more_requests_are_under_a_fault_at_once_than_may_be() {
    let backend = Backend::healthy();
    let sidecar = Sidecar::start(&with_route(
        &backend,
        &format!("faultInjection: {{until: {FAR}, maxActiveFaults: 1, delay: {{fixedDelay: 5m}}}}"),
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
fn a_reload_forgets_neither_who_is_under_a_fault_nor_what_is_out() {
    let backend = Backend::healthy();
    let text = with_route(
        &backend,
        &format!("faultInjection: {{until: {FAR}, maxActiveFaults: 1, delay: {{fixedDelay: 5m}}}}"),
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
fn a_fault_in_shadow_mode_is_counted_only() {
    let backend = Backend::healthy();
    let sidecar = Sidecar::start(&with_route(
        &backend,
        &format!("faultInjection: {{mode: Shadow, until: {FAR}, abort: {{httpStatus: 503}}}}"),
    ));
    assert_eq!(sidecar.get("/").status, 200);
    assert_eq!(
        sidecar.metric(r#"outrigger_shadow_refusals_total{route="in",reason="fault_injected"}"#),
        1.0
    );
}

fn mirroring(app: &Backend, mirror: &Backend, mirrors: &str, sections: &str) -> String {
    also("other", mirror, &policy(&[app.address], sections)).replace(
        "- {name: in,",
        &format!("- {{name: in, filters: [{mirrors}],"),
    )
}

fn mirrored(app: &Backend, mirror: &Backend, mirrors: &str) -> Sidecar {
    Sidecar::start(&mirroring(app, mirror, mirrors, ""))
}

const MIRROR: &str = "{type: RequestMirror, requestMirror: {backendRef: {name: other}}}";

#[test]
fn a_copy_is_the_same_request_and_its_answer_is_nobodys() {
    let (app, mirror) = (
        Backend::healthy(),
        Backend::answering(|_| ok("from the mirror")),
    );
    let sidecar = mirrored(&app, &mirror, MIRROR);
    let mut client = sidecar.client();
    assert_eq!(client.get("/a?x=1").text(), "hello");
    assert_eq!(client.post("/pay", "money").text(), "hello");
    eventually("both came", || mirror.seen().len() == 2);
    let mut seen: Vec<(String, Vec<u8>)> = mirror
        .seen()
        .iter()
        .map(|seen| (seen.line().to_owned(), seen.body.clone()))
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
fn a_mirror_that_is_slow_or_gone_slows_and_fails_nothing_and_copies_are_bounded() {
    let gate = Gate::new();
    let there = gate.clone();
    let (app, stuck) = (
        Backend::healthy(),
        Backend::answering(move |_| {
            there.pass();
            ok("late")
        }),
    );
    let sidecar = Sidecar::start(&mirroring(
        &app,
        &stuck,
        MIRROR,
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
    (0..200).for_each(|_| gate.open());
    let gone = Backend::healthy();
    let sidecar = mirrored(&app, &gone, MIRROR);
    drop(gone);
    assert_eq!(sidecar.get("/").status, 200);
}

#[test]
fn a_body_that_is_not_kept_is_not_copied_and_no_share_means_none() {
    let (app, mirror) = (Backend::healthy(), Backend::healthy());
    let sidecar = mirrored(&app, &mirror, MIRROR);
    let body = "x".repeat((64 << 10) + 1);
    assert_eq!(sidecar.client().post("/", &body).status, 200);
    eventually("it is counted", || {
        sidecar.metric(r#"outrigger_mirrored_requests_total{backend="other",result="skipped"}"#)
            == 1.0
    });
    let sidecar = mirrored(
        &app,
        &mirror,
        &MIRROR.replace("other}}", "other}, percent: 0}"),
    );
    assert_eq!(sidecar.get("/").status, 200);
    assert_eq!(mirror.seen().len(), 0);
}
