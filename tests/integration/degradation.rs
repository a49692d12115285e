//! What is answered when the backend cannot.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::support::{
    Backend, Sidecar,
    backend::{Gate, answer, ok},
    eventually,
    http2::{Http2Backend, Http2Client, ended},
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
    (
        Backend::answering(move |_| {
            if there.load(Ordering::SeqCst) {
                good.to_owned()
            } else {
                answer(503, "ill")
            }
        }),
        is_well,
    )
}

#[test]
fn a_fallback_answers_what_the_policy_says_and_says_so() {
    let backend = Backend::answering(|_| answer(503, "ill"));
    let sidecar = Sidecar::start(&policy(&[backend.address], &defaults(RESPONSE)));
    let answer = sidecar.get("/");
    assert_eq!(
        (
            answer.status,
            answer.text().as_str(),
            answer.header("content-type")
        ),
        (200, "{\"items\":[]}", Some("application/json"))
    );
    assert_eq!(
        answer.reason(),
        format!("retries_exhausted:{}", backend.address)
    );
    assert!(
        answer
            .header("proxy-status")
            .unwrap()
            .starts_with("outrigger; error=")
    );
    assert_eq!(
        sidecar.metric(r#"outrigger_degraded_requests_total{route="in",with="response"}"#),
        1.0
    );
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
        (
            silent.address,
            "Timeout",
            "timeouts: {backendRequest: 40ms}, ",
            200,
        ),
        (
            silent.address,
            "RetriesExhausted",
            "timeouts: {backendRequest: 40ms}, ",
            504,
        ),
        (ill.address, "RetriesExhausted", "", 200),
        (ill.address, "CircuitOpen", "", 503),
        (broken.address, "RetriesExhausted", "", 500),
        (
            broken.address,
            "RetriesExhausted",
            "retry: {attempts: 0, codes: [500]}, ",
            200,
        ),
    ];
    for (address, trigger, others, status) in table {
        let sections = format!(
            "{others}{}",
            RESPONSE.replace("{response", &format!("{{triggers: [{trigger}], response"))
        );
        let sidecar = Sidecar::start(&policy(&[address], &defaults(&sections)));
        assert_eq!(sidecar.get("/").status, status, "{trigger} of {address}");
    }
    let sections = format!(
        "circuitBreaker: {{consecutiveFailures: 1}}, {}",
        RESPONSE.replace("{response", "{triggers: [CircuitOpen], response")
    );
    let sidecar = Sidecar::start(&policy(&[ill.address], &defaults(&sections)));
    assert_eq!(sidecar.get("/").status, 503, "the first one is the app's");
    let refused = sidecar.get("/");
    assert_eq!(
        (refused.status, refused.reason()),
        (200, "breaker_open:app")
    );
}

#[test]
fn a_fallback_backend_is_asked_with_the_same_request_under_its_own_policy() {
    let (ill, well) = (
        Backend::answering(|_| answer(503, "ill")),
        Backend::answering(|seen| ok(&format!("{} {}", seen.line(), seen.body.len()))),
    );
    let sections =
        defaults("retry: {attempts: 0, codes: [503]}, fallback: {backendRef: {name: spare}}");
    let sidecar = Sidecar::start(&also("spare", &well, &policy(&[ill.address], &sections)));
    let put = |path: &str| {
        sidecar
            .client()
            .send(format!(
                "PUT {path} HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\nmoney"
            ))
            .answer()
    };
    let answer = put("/pay?x=1");
    assert_eq!(
        (answer.status, answer.text().as_str(), answer.reason()),
        (200, "PUT /pay?x=1 HTTP/1.1 5", "")
    );
    assert_eq!(sidecar.log(1)[0]["backend"], "spare");
    assert_eq!(
        sidecar.metric(r#"outrigger_degraded_requests_total{route="in",with="backend"}"#),
        1.0
    );
    assert_eq!(
        well.seen()[0].header("x-outrigger-attempt"),
        Some("1"),
        "it is the first that this backend sees"
    );
    drop(well);
    eventually("what the fallback says is what there is", || {
        sidecar.get("/").status == 502
    });
}

#[test]
fn a_post_that_may_have_run_is_not_sent_to_another_backend() {
    let well = Backend::healthy();
    let resetting = Backend::start(|mut connection| {
        connection.request();
        connection.reset();
    });
    let ill = Backend::answering(|_| answer(503, "ill"));
    for (address, status) in [(resetting.address, 502), (ill.address, 503)] {
        let sidecar = Sidecar::start(&also(
            "spare",
            &well,
            &policy(
                &[address],
                &defaults("fallback: {backendRef: {name: spare}}"),
            ),
        ));
        assert_eq!(sidecar.client().post("/pay", "money").status, status);
        assert_eq!(well.seen().len(), 0);
    }
    let nowhere = Sidecar::start(&also(
        "spare",
        &well,
        &policy(
            &[Backend::nowhere()],
            &defaults("fallback: {backendRef: {name: spare}}"),
        ),
    ));
    assert_eq!(
        nowhere.client().post("/pay", "money").text(),
        "hello",
        "it has not run anywhere"
    );
    let allowed = defaults(
        "retry: {attempts: 0, retryNonIdempotent: true}, fallback: {backendRef: {name: spare}}",
    );
    let sidecar = Sidecar::start(&also("spare", &well, &policy(&[ill.address], &allowed)));
    assert_eq!(
        sidecar.client().post("/pay", "money").text(),
        "hello",
        "by the route's leave"
    );
}

#[test]
fn a_fallback_backend_has_a_breaker_hedges_and_limits_of_its_own() {
    let (ill, well) = (
        Backend::answering(|_| answer(503, "ill")),
        Backend::healthy(),
    );
    let sections = "circuitBreaker: {scope: Route, consecutiveFailures: 2}, hedging: {hedgingDelay: 10s}, fallback: {backendRef: {name: spare}}, connectionLimits: {maxParallelRequests: 1, maxPendingRequests: 0}";
    let sidecar = Sidecar::start(&also(
        "spare",
        &well,
        &policy(&[ill.address], &defaults(sections)),
    ));
    for _ in 0..6 {
        assert_eq!(sidecar.get("/").text(), "hello");
        // A place is given back after its answer is through.
        eventually("nothing is in flight", || sidecar.in_flight() == 0);
    }
    assert_eq!(
        (
            sidecar.breaker("route:in")["state"].as_str(),
            sidecar.breaker("route:in/spare")["state"].as_str()
        ),
        (Some("open"), Some("closed"))
    );
    let limits = sidecar.json("/api/v1/limits");
    let of = |name: &str| {
        limits["concurrency"]
            .as_array()
            .unwrap()
            .iter()
            .find(|limit| limit["name"] == name)
            .unwrap()["in_flight"]
            .clone()
    };
    assert_eq!((of("app"), of("spare")), (0.into(), 0.into()));
}

#[test]
fn who_waits_for_a_fallback_backend_holds_no_place_of_the_first() {
    let gate = Gate::new();
    let there = gate.clone();
    let slow = Backend::answering(move |_| {
        there.pass();
        ok("late")
    });
    let ill = Backend::answering(|_| answer(503, "ill"));
    let sections = "fallback: {backendRef: {name: spare}}, connectionLimits: {maxParallelRequests: 1, maxPendingRequests: 0}";
    let sidecar = Sidecar::start(&also(
        "spare",
        &slow,
        &policy(&[ill.address], &defaults(sections)),
    ));
    let mut waiting = sidecar.client();
    waiting.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n");
    eventually("the spare is asked", || slow.seen().len() == 1);
    let refused = sidecar.get("/");
    assert_eq!(
        (refused.status, refused.reason()),
        (503, "concurrency_limit:spare"),
        "the spare's own limit holds"
    );
    assert_eq!(ill.seen().len(), 2, "and the first is asked all the same");
    gate.open();
    assert_eq!(waiting.answer().text(), "late");
}

#[test]
fn a_fallback_has_no_more_of_the_clients_time_than_is_left() {
    let silent = Backend::start(|mut connection| {
        connection.request();
        connection.wait_for_close();
    });
    let well = Backend::healthy();
    let sidecar = Sidecar::start(&also(
        "spare",
        &well,
        &policy(
            &[silent.address],
            &defaults("timeouts: {backendRequest: 60ms}, fallback: {backendRef: {name: spare}}"),
        ),
    ));
    let ask = |deadline: &str| {
        sidecar
            .client()
            .send(format!(
                "GET / HTTP/1.1\r\nhost: test\r\nx-outrigger-deadline-ms: {deadline}\r\n\r\n"
            ))
            .answer()
    };
    assert_eq!(
        ask("30").reason().split(':').next(),
        Some("request_timeout"),
        "nothing is left of it"
    );
    assert_eq!(well.seen().len(), 0);
    assert_eq!(ask("9000").text(), "hello");
    assert!(
        well.seen()[0]
            .header("x-outrigger-deadline-ms")
            .unwrap()
            .parse::<u64>()
            .unwrap()
            <= 60
    );
}

#[test]
fn a_call_of_grpc_that_was_declined_goes_to_the_fallback_backend() {
    let declining = Http2Backend::start(|mut call| async move {
        let mut head = http::Response::builder()
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        head.headers_mut().extend(ended("14"));
        call.respond.send_response(head, true).unwrap();
    });
    let well = Http2Backend::start(|mut call| async move {
        let head = http::Response::builder()
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        call.respond
            .send_response(head, false)
            .unwrap()
            .send_trailers(ended("0"))
            .unwrap();
    });
    let spare = format!(
        "    - {{name: spare, protocol: GRPC, endpoints: [\"{}\"]}}\n  routes:\n",
        well.address
    );
    for (retry, expected) in [
        ("retry: {attempts: 0, grpcCodes: [unavailable]}, ", "0"),
        ("", "14"),
    ] {
        let text = policy(
            &[declining.address],
            &defaults(&format!("{retry}fallback: {{backendRef: {{name: spare}}}}")),
        );
        let text = text
            .replace("]}\n  routes", "], protocol: GRPC}\n  routes")
            .replace("  routes:\n", &spare);
        let sidecar = Sidecar::start(&text);
        let client = Http2Client::connect(sidecar.address("inbound"));
        assert_eq!(
            client.call("/shop.Payments/Charge", None).grpc_status(),
            Some(expected),
            "only what the policy names has not run"
        );
    }
}

#[test]
fn in_shadow_mode_the_failure_passes_and_is_counted() {
    let backend = Backend::answering(|_| answer(503, "ill"));
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &defaults(&RESPONSE.replace("{response", "{mode: Shadow, response")),
    ));
    assert_eq!(sidecar.get("/").text(), "ill");
    assert_eq!(
        sidecar.metric(r#"outrigger_degraded_requests_total{route="in",with="shadow"}"#),
        1.0
    );
}

const GOOD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncache-control: max-age=1\r\nconnection: x-hop\r\nx-hop: 1\r\netag: \"7\"\r\ncontent-length: 4\r\n\r\npage";

#[test]
fn an_earlier_answer_is_given_while_the_backend_fails_and_is_marked() {
    let (backend, is_well) = ailing(GOOD);
    let sidecar = Sidecar::start(&policy(&[backend.address], &defaults("staleIfError: {}")));
    assert_eq!(sidecar.get("/a").header("cache-status"), None);
    is_well.store(false, Ordering::SeqCst);
    let stale = sidecar.get("/a");
    assert_eq!(
        (
            stale.status,
            stale.text().as_str(),
            stale.header("etag"),
            stale.header("x-hop")
        ),
        (200, "page", Some("\"7\""), None)
    );
    assert_eq!(
        (stale.reason(), stale.header("cache-status")),
        (
            "stale:503",
            Some("outrigger; fwd=stale; fwd-status=503; detail=stale-if-error")
        )
    );
    assert!(stale.header("age").unwrap().parse::<u64>().unwrap() < 60);
    let mut asking = sidecar.client();
    let (status, head) = asking
        .send("HEAD /a HTTP/1.1\r\nhost: test\r\n\r\n")
        .head()
        .unwrap();
    assert!(
        status == 200 && head.contains("content-length: 4"),
        "{head}"
    );
    assert_eq!(asking.get("/a").text(), "page", "no body came before it");
    for (path, host) in [("/b", "test"), ("/a?x", "test"), ("/a", "other")] {
        let other = sidecar
            .client()
            .send(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n"))
            .answer();
        assert_eq!(other.text(), "ill", "{path} of {host}: another address");
    }
    assert_eq!(
        sidecar
            .reload(&policy(
                &[Backend::nowhere()],
                &defaults("staleIfError: {}")
            ))
            .status,
        200
    );
    let stale = sidecar.get("/a");
    assert_eq!(
        (stale.reason(), stale.header("cache-status")),
        (
            "stale:connect_failed",
            Some("outrigger; hit; detail=stale-if-error")
        )
    );
}

#[test]
fn what_is_somebodys_or_has_changed_is_not_given() {
    let (backend, is_well) = ailing(GOOD);
    let sidecar = Sidecar::start(&policy(&[backend.address], &defaults("staleIfError: {}")));
    let with = |field: &str| {
        sidecar
            .client()
            .send(format!("GET /a HTTP/1.1\r\nhost: test\r\n{field}\r\n\r\n"))
            .answer()
    };
    with("authorization: Bearer 7");
    with("cookie: user=7");
    is_well.store(false, Ordering::SeqCst);
    assert_eq!(sidecar.get("/a").text(), "ill", "neither was kept");
    is_well.store(true, Ordering::SeqCst);
    sidecar.get("/a");
    is_well.store(false, Ordering::SeqCst);
    assert_eq!(sidecar.get("/a").text(), "page");
    assert_eq!(
        with("authorization: Bearer 7").text(),
        "ill",
        "what was given to nobody in particular is not given to somebody"
    );
    assert_eq!(with("cache-control: no-cache").text(), "ill");
    assert_eq!(sidecar.client().post("/a", "x").text(), "ill");
    assert_eq!(
        sidecar.get("/a").text(),
        "page",
        "a change that failed changed nothing"
    );
    is_well.store(true, Ordering::SeqCst);
    assert_eq!(sidecar.client().post("/a", "x").status, 200);
    is_well.store(false, Ordering::SeqCst);
    assert_eq!(sidecar.get("/a").text(), "ill", "it has been changed");
}

#[test]
fn answers_are_told_apart_by_all_that_they_depend_on() {
    let is_well = Arc::new(AtomicBool::new(true));
    let there = is_well.clone();
    let backend = Backend::answering(move |seen| {
        if !there.load(Ordering::SeqCst) {
            return answer(503, "ill");
        }
        let user: Vec<&str> = seen
            .head
            .lines()
            .filter_map(|line| {
                line.strip_prefix("x-user: ")
                    .or_else(|| line.strip_prefix("X-User: "))
            })
            .collect();
        let body = format!(
            "for {} by {}",
            user.join("+"),
            seen.header("x-forwarded-host").unwrap_or_default()
        );
        format!(
            "HTTP/1.1 200 OK\r\nvary: x-user\r\nx-secret: 1\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    });
    let filter = "filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [x-secret], set: [{name: x-kind, value: page}]}}]";
    let text = policy(&[backend.address], &defaults("staleIfError: {}"))
        .replace("- {name: in,", &format!("- {{name: in, {filter},"));
    let sidecar = Sidecar::start(&text);
    let ask = |fields: &str| {
        sidecar
            .client()
            .send(format!("GET /a HTTP/1.1\r\nhost: test\r\n{fields}\r\n"))
            .answer()
    };
    let (one, two) = (
        "x-user: lang\r\nx-user: 1\r\n",
        "x-user: lang\r\nx-user: 2\r\n",
    );
    assert_eq!(ask(one).text(), "for lang+1 by test");
    assert_eq!(ask("x-forwarded-host: evil\r\n").text(), "for  by evil");
    is_well.store(false, Ordering::SeqCst);
    let stale = ask(one);
    assert_eq!(
        (
            stale.text().as_str(),
            stale.header("x-secret"),
            stale.header("x-kind")
        ),
        ("for lang+1 by test", None, Some("page")),
        "the route's filters hold"
    );
    assert_eq!(
        ask(two).text(),
        "ill",
        "the same first value, and another user"
    );
    assert_eq!(
        ask("").text(),
        "ill",
        "what was answered to another host name is not given"
    );
    assert_eq!(ask("x-forwarded-host: evil\r\n").text(), "for  by evil");
}

#[test]
fn what_cannot_be_kept_from_one_request_leaves_what_is_kept_of_others() {
    let (backend, is_well) = ailing(GOOD);
    let sidecar = Sidecar::start(&policy(&[backend.address], &defaults("staleIfError: {}")));
    let with = |field: &str| {
        sidecar
            .client()
            .send(format!("GET /a HTTP/1.1\r\nhost: test\r\n{field}\r\n\r\n"))
            .answer()
    };
    sidecar.get("/a");
    for field in [
        "cookie: user=7",
        "cache-control: no-store",
        "range: bytes=0-1",
    ] {
        assert_eq!(with(field).status, 200);
    }
    is_well.store(false, Ordering::SeqCst);
    assert_eq!(sidecar.get("/a").text(), "page");
}

#[test]
fn what_another_sidecar_made_of_a_failure_is_not_kept() {
    let (backend, is_well) = ailing(
        "HTTP/1.1 200 OK\r\nx-outrigger-reason: breaker_open:app\r\ncontent-length: 2\r\n\r\n[]",
    );
    let sidecar = Sidecar::start(
        &policy(&[backend.address], &defaults("staleIfError: {}"))
            .replace("direction: Inbound", "direction: Outbound"),
    );
    assert_eq!(sidecar.get("/a").text(), "[]");
    is_well.store(false, Ordering::SeqCst);
    assert_eq!(sidecar.get("/a").text(), "ill");
}

#[test]
fn an_answer_that_is_too_long_or_breaks_off_is_not_kept() {
    let (long, is_well) = ailing(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n12345\r\n6\r\n678901\r\n0\r\n\r\n",
    );
    let sidecar = Sidecar::start(&policy(
        &[long.address],
        &defaults("staleIfError: {maxEntryBytes: 10}"),
    ));
    assert_eq!(sidecar.get("/").text(), "12345678901");
    is_well.store(false, Ordering::SeqCst);
    assert_eq!(sidecar.get("/").text(), "ill");

    let (short, is_well) = ailing(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n12345\r\n5\r\n67890\r\n0\r\n\r\n",
    );
    let sidecar = Sidecar::start(&policy(
        &[short.address],
        &defaults("staleIfError: {maxEntryBytes: 10}"),
    ));
    assert_eq!(sidecar.get("/").text(), "1234567890");
    is_well.store(false, Ordering::SeqCst);
    let stale = sidecar.get("/");
    assert_eq!(
        (stale.text().as_str(), stale.header("transfer-encoding")),
        ("1234567890", None)
    );

    let broken = Backend::start(|mut connection| {
        if connection.number > 1 {
            return connection.reset();
        }
        connection.request();
        connection.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n12345");
    });
    let sidecar = Sidecar::start(&policy(
        &[broken.address],
        &defaults("staleIfError: {}, retry: {attempts: 0, retryOn: []}"),
    ));
    assert!(!sidecar.get("/").is_complete);
    assert_eq!(sidecar.get("/").status, 502);
}

#[test]
fn an_earlier_answer_comes_before_a_fallback() {
    let (backend, is_well) = ailing(GOOD);
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &defaults(&format!("staleIfError: {{}}, {RESPONSE}")),
    ));
    sidecar.get("/known");
    is_well.store(false, Ordering::SeqCst);
    assert_eq!(
        (
            sidecar.get("/known").text().as_str(),
            sidecar.get("/unknown").text().as_str()
        ),
        ("page", "{\"items\":[]}")
    );
}
