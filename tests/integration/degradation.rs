//! What is answered when the backend cannot.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::support::{
    Backend, Sidecar,
    backend::{answer, ok},
    eventually,
    sidecar::{also, policy},
};

const RESPONSE: &str = "fallback: {response: {statusCode: 200, contentType: application/json, body: '{\"items\":[]}'}}";

fn defaults(sections: &str) -> String {
    format!("  defaults: {{{sections}}}\n")
}

/// Answers as told until the switch is off, and then 503.
fn ailing(good: &'static str) -> (Backend, Arc<AtomicBool>) {
    let is_well = Arc::new(AtomicBool::new(true));
    let there = is_well.clone();
    (Backend::answering(move |_| if there.load(Ordering::SeqCst) { good.to_owned() } else { answer(503, "ill") }), is_well)
}

#[test]
fn a_fallback_answers_what_the_policy_says_and_says_so() {
    let backend = Backend::answering(|_| answer(503, "ill"));
    let sidecar = Sidecar::start(&policy(&[backend.address], &defaults(RESPONSE)));
    let answer = sidecar.get("/");
    assert_eq!((answer.status, answer.text().as_str(), answer.header("content-type")), (200, "{\"items\":[]}", Some("application/json")));
    assert_eq!(answer.reason(), format!("retries_exhausted:{}", backend.address));
    assert!(answer.header("proxy-status").unwrap().starts_with("outrigger; error="));
    assert_eq!(sidecar.metric(r#"outrigger_degraded_requests_total{route="in",with="response"}"#), 1.0);
    assert_eq!(sidecar.log(1)[0]["status"], 200);
}

#[test]
fn each_trigger_acts_on_its_own_failures_only() {
    let nowhere = Backend::nowhere();
    let silent = Backend::start(|mut connection| {
        connection.request();
        connection.wait_for_close();
    });
    let ill = Backend::answering(|_| answer(503, "ill"));
    let broken = Backend::answering(|_| answer(500, "a bug"));
    let table = [
        (nowhere, "RetriesExhausted", "", 200),
        (nowhere, "Timeout", "", 502),
        (silent.address, "Timeout", "timeouts: {backendRequest: 40ms}, ", 200),
        (silent.address, "RetriesExhausted", "timeouts: {backendRequest: 40ms}, ", 504),
        (ill.address, "RetriesExhausted", "", 200),
        (ill.address, "CircuitOpen", "", 503),
        (broken.address, "RetriesExhausted", "", 500),
        (broken.address, "RetriesExhausted", "retry: {attempts: 0, codes: [500]}, ", 200),
    ];
    for (address, trigger, others, status) in table {
        let sections = format!("{others}{}", RESPONSE.replace("{response", &format!("{{triggers: [{trigger}], response")));
        let sidecar = Sidecar::start(&policy(&[address], &defaults(&sections)));
        assert_eq!(sidecar.get("/").status, status, "{trigger} of {address}");
    }
    let sections = format!("circuitBreaker: {{consecutiveFailures: 1}}, {}", RESPONSE.replace("{response", "{triggers: [CircuitOpen], response"));
    let sidecar = Sidecar::start(&policy(&[ill.address], &defaults(&sections)));
    assert_eq!(sidecar.get("/").status, 503, "the first one is the app's");
    let refused = sidecar.get("/");
    assert_eq!((refused.status, refused.reason()), (200, "breaker_open:app"));
}

#[test]
fn a_fallback_backend_is_asked_with_the_same_request_under_its_own_policy() {
    let (ill, well) = (Backend::answering(|_| answer(503, "ill")), Backend::answering(|seen| ok(&format!("{} {}", seen.line(), seen.body.len()))));
    let sections = defaults("retry: {attempts: 0, codes: [503]}, fallback: {backendRef: {name: spare}}");
    let sidecar = Sidecar::start(&also("spare", &well, &policy(&[ill.address], &sections)));
    let answer = sidecar.client().post("/pay?x=1", "money");
    assert_eq!((answer.status, answer.text().as_str(), answer.reason()), (200, "POST /pay?x=1 HTTP/1.1 5", ""));
    assert_eq!(sidecar.log(1)[0]["backend"], "spare");
    assert_eq!(sidecar.metric(r#"outrigger_degraded_requests_total{route="in",with="backend"}"#), 1.0);
    drop(well);
    eventually("what the fallback says is what there is", || sidecar.get("/").status == 502);
}

#[test]
fn in_shadow_mode_the_failure_passes_and_is_counted() {
    let backend = Backend::answering(|_| answer(503, "ill"));
    let sidecar = Sidecar::start(&policy(&[backend.address], &defaults(&RESPONSE.replace("{response", "{mode: Shadow, response"))));
    assert_eq!(sidecar.get("/").text(), "ill");
    assert_eq!(sidecar.metric(r#"outrigger_degraded_requests_total{route="in",with="shadow"}"#), 1.0);
}

const GOOD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncache-control: max-age=1\r\nconnection: x-hop\r\nx-hop: 1\r\netag: \"7\"\r\ncontent-length: 4\r\n\r\npage";

#[test]
fn an_earlier_answer_is_given_while_the_backend_fails_and_is_marked() {
    let (backend, is_well) = ailing(GOOD);
    let sidecar = Sidecar::start(&policy(&[backend.address], &defaults("staleIfError: {}")));
    assert_eq!(sidecar.get("/a").header("cache-status"), None);
    is_well.store(false, Ordering::SeqCst);
    let stale = sidecar.get("/a");
    assert_eq!((stale.status, stale.text().as_str(), stale.header("etag"), stale.header("x-hop")), (200, "page", Some("\"7\""), None));
    assert_eq!((stale.reason(), stale.header("cache-status")), ("stale:503", Some("outrigger; fwd=stale; fwd-status=503; detail=stale-if-error")));
    assert!(stale.header("age").unwrap().parse::<u64>().unwrap() < 60);
    let mut asking = sidecar.client();
    let (status, head) = asking.send("HEAD /a HTTP/1.1\r\nhost: test\r\n\r\n").head().unwrap();
    assert!(status == 200 && head.contains("content-length: 4"), "{head}");
    assert_eq!(asking.get("/a").text(), "page", "no body came before it");
    for (path, host) in [("/b", "test"), ("/a?x", "test"), ("/a", "other")] {
        let other = sidecar.client().send(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n")).answer();
        assert_eq!(other.text(), "ill", "{path} of {host}: another address");
    }
    drop(backend);
    eventually("without the backend too", || {
        let stale = sidecar.get("/a");
        stale.reason() == "stale:connect_failed" && stale.header("cache-status") == Some("outrigger; hit; detail=stale-if-error")
    });
}

#[test]
fn what_is_somebodys_or_has_changed_is_not_given() {
    let (backend, is_well) = ailing(GOOD);
    let sidecar = Sidecar::start(&policy(&[backend.address], &defaults("staleIfError: {}")));
    let with = |field: &str| sidecar.client().send(format!("GET /a HTTP/1.1\r\nhost: test\r\n{field}\r\n\r\n")).answer();
    with("authorization: Bearer 7");
    with("cookie: user=7");
    is_well.store(false, Ordering::SeqCst);
    assert_eq!(sidecar.get("/a").text(), "ill", "neither was kept");
    is_well.store(true, Ordering::SeqCst);
    sidecar.get("/a");
    is_well.store(false, Ordering::SeqCst);
    assert_eq!(sidecar.get("/a").text(), "page");
    assert_eq!(with("authorization: Bearer 7").text(), "ill", "what was given to nobody in particular is not given to somebody");
    assert_eq!(with("cache-control: no-cache").text(), "ill");
    assert_eq!(sidecar.client().post("/a", "x").text(), "ill");
    assert_eq!(sidecar.get("/a").text(), "page", "a change that failed changed nothing");
    is_well.store(true, Ordering::SeqCst);
    assert_eq!(sidecar.client().post("/a", "x").status, 200);
    is_well.store(false, Ordering::SeqCst);
    assert_eq!(sidecar.get("/a").text(), "ill", "it has been changed");
}

#[test]
fn an_answer_that_is_too_long_or_breaks_off_is_not_kept() {
    let (long, is_well) = ailing("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n12345\r\n6\r\n678901\r\n0\r\n\r\n");
    let sidecar = Sidecar::start(&policy(&[long.address], &defaults("staleIfError: {maxEntryBytes: 10}")));
    assert_eq!(sidecar.get("/").text(), "12345678901");
    is_well.store(false, Ordering::SeqCst);
    assert_eq!(sidecar.get("/").text(), "ill");

    let (short, is_well) = ailing("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n12345\r\n5\r\n67890\r\n0\r\n\r\n");
    let sidecar = Sidecar::start(&policy(&[short.address], &defaults("staleIfError: {maxEntryBytes: 10}")));
    assert_eq!(sidecar.get("/").text(), "1234567890");
    is_well.store(false, Ordering::SeqCst);
    let stale = sidecar.get("/");
    assert_eq!((stale.text().as_str(), stale.header("transfer-encoding")), ("1234567890", None));

    let broken = Backend::start(|mut connection| {
        if connection.number > 1 {
            return connection.reset();
        }
        connection.request();
        connection.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n12345");
    });
    let sidecar = Sidecar::start(&policy(&[broken.address], &defaults("staleIfError: {}, retry: {attempts: 0, retryOn: []}")));
    assert!(!sidecar.get("/").is_complete);
    assert_eq!(sidecar.get("/").status, 502);
}

#[test]
fn an_earlier_answer_comes_before_a_fallback() {
    let (backend, is_well) = ailing(GOOD);
    let sidecar = Sidecar::start(&policy(&[backend.address], &defaults(&format!("staleIfError: {{}}, {RESPONSE}"))));
    sidecar.get("/known");
    is_well.store(false, Ordering::SeqCst);
    assert_eq!((sidecar.get("/known").text().as_str(), sidecar.get("/unknown").text().as_str()), ("page", "{\"items\":[]}"));
}
