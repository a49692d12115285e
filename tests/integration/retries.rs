//! What is tried again, and what never is.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::{
    Backend, Sidecar,
    backend::{answer, ok},
    eventually,
    sidecar::policy,
};

const RETRY: &str = "  defaults: {retry: {attempts: 2, codes: [502, 503, 504], retryOn: [connect-failure, reset-before-request, reset, timeout], backoff: 1ms}}\n";

/// More budget than a test can spend.
const AMPLE: &str = "  defaults: {retryConstraint: {minRetryRate: {count: 1000}}}\n";

/// Answers 503 so many times, and then 200.
fn failing(times: usize) -> Backend {
    let count = AtomicUsize::new(0);
    Backend::answering(move |_| {
        if count.fetch_add(1, Ordering::SeqCst) < times {
            answer(503, "not yet")
        } else {
            ok("there")
        }
    })
}

#[test]
fn a_503_is_tried_again_on_the_same_connection() {
    let backend = failing(2);
    let sidecar = Sidecar::start(&policy(&[backend.address], RETRY));
    let answer = sidecar.get("/");
    assert_eq!((answer.status, answer.text().as_str()), (200, "there"));
    let attempts: Vec<String> = backend
        .seen()
        .iter()
        .map(|seen| seen.header("x-outrigger-attempt").unwrap().to_owned())
        .collect();
    assert_eq!(attempts, ["1", "2", "3"]);
    assert_eq!(
        backend.connections(),
        1,
        "an answer that is thrown away does not cost its connection"
    );
    assert_eq!(sidecar.log(1)[0]["attempts"], 3);
    assert_eq!(
        sidecar.metric(r#"outrigger_retries_total{backend="app"}"#),
        2.0
    );
}

#[test]
fn the_last_answer_of_the_app_is_passed_through() {
    let backend = failing(usize::MAX);
    let sidecar = Sidecar::start(&policy(&[backend.address], RETRY));
    let answer = sidecar.get("/");
    assert_eq!(
        (answer.status, answer.text().as_str(), answer.reason()),
        (503, "not yet", "")
    );
    assert_eq!(backend.seen().len(), 3);
    assert_eq!(
        sidecar
            .metric(r#"outrigger_retries_stopped_total{backend="app",why="attempts_exhausted"}"#),
        1.0
    );
}

#[test]
fn a_post_that_was_answered_or_may_have_run_is_never_repeated() {
    let backend = failing(usize::MAX);
    let sidecar = Sidecar::start(&policy(&[backend.address], RETRY));
    assert_eq!(sidecar.client().post("/", "pay").text(), "not yet");
    assert_eq!(backend.seen().len(), 1);

    let resetting = Backend::start(|mut connection| {
        connection.request();
        connection.reset();
    });
    let sidecar = Sidecar::start(&policy(&[resetting.address], RETRY));
    let answer = sidecar.client().post("/", "pay");
    assert_eq!(
        (answer.status, answer.reason()),
        (
            502,
            format!("upstream_reset:{}", resetting.address).as_str()
        )
    );
    assert_eq!(resetting.seen().len(), 1);
}

#[test]
fn a_post_with_an_idempotency_key_or_by_the_routes_leave_is_repeated() {
    let backend = failing(1);
    let sidecar = Sidecar::start(&policy(&[backend.address], RETRY));
    let request =
        "POST / HTTP/1.1\r\nhost: a\r\nidempotency-key: 7\r\ncontent-length: 3\r\n\r\npay";
    assert_eq!(sidecar.client().send(request).answer().text(), "there");
    assert!(backend.seen().iter().all(|seen| seen.body == b"pay") && backend.seen().len() == 2);

    let backend = failing(1);
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &RETRY.replace("attempts: 2", "attempts: 2, retryNonIdempotent: true"),
    ));
    assert_eq!(sidecar.client().post("/", "pay").text(), "there");
}

#[test]
fn what_another_sidecar_tries_again_is_not_multiplied() {
    let backend = failing(usize::MAX);
    let sidecar = Sidecar::start(&policy(&[backend.address], RETRY));
    let mut client = sidecar.client();
    let ask = |attempt: &str| {
        format!("GET / HTTP/1.1\r\nhost: a\r\nx-outrigger-attempt: {attempt}\r\n\r\n")
    };
    assert_eq!(client.send(ask("2")).answer().status, 503);
    assert_eq!(backend.seen().len(), 1);
    assert_eq!(
        backend.seen()[0].header("x-outrigger-attempt"),
        Some("2"),
        "the count goes on"
    );
    assert_eq!(
        sidecar.metric(r#"outrigger_retries_stopped_total{backend="app",why="already_retried"}"#),
        1.0
    );
    for first in ["1", "0", "many"] {
        let before = backend.seen().len();
        assert_eq!(client.send(ask(first)).answer().status, 503);
        assert_eq!(backend.seen().len(), before + 3, "{first}");
    }
}

#[test]
fn a_connection_that_cannot_be_made_is_tried_elsewhere_for_every_method() {
    let backend = Backend::healthy();
    let sidecar = Sidecar::start(&policy(&[Backend::nowhere(), backend.address], AMPLE));
    for _ in 0..20 {
        assert_eq!(
            sidecar.client().post("/", "pay").status,
            200,
            "without any retry section: nothing reached the app"
        );
    }
    assert_eq!(backend.seen().len(), 20);
}

#[test]
fn with_nowhere_to_go_the_refusal_says_so() {
    let nowhere = Backend::nowhere();
    let sidecar = Sidecar::start(&policy(&[nowhere], ""));
    let answer = sidecar.get("/");
    assert_eq!(
        (answer.status, answer.reason()),
        (502, format!("connect_failed:{nowhere}").as_str())
    );
    assert!(
        answer
            .header("proxy-status")
            .unwrap()
            .contains("error=connection_refused")
    );
    assert_eq!(sidecar.log(1)[0]["attempts"], 3, "two transparent retries");
}

#[test]
fn a_reset_before_the_answer_is_tried_again_for_a_get() {
    let backend = Backend::start(|mut connection| {
        connection.request();
        if connection.number == 1 {
            return connection.reset();
        }
        connection.send(ok("there"));
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], RETRY));
    assert_eq!(sidecar.get("/").text(), "there");
}

#[test]
fn a_body_is_sent_again_at_the_bound_and_not_one_byte_over() {
    let retry = RETRY.replace("attempts: 2", "attempts: 2, maxBufferedBody: 1Ki");
    for (length, expected, requests) in [(1_024, "there", 2), (1_025, "not yet", 1)] {
        let backend = failing(1);
        let sidecar = Sidecar::start(&policy(&[backend.address], &retry));
        let body = "x".repeat(length);
        let answer = sidecar
            .client()
            .send(format!(
                "PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n{body}"
            ))
            .answer();
        assert_eq!(answer.text(), expected, "{length} bytes");
        assert!(
            backend.seen().len() == requests
                && backend
                    .seen()
                    .iter()
                    .all(|seen| seen.body == body.as_bytes()),
            "{length} bytes"
        );
    }
}

#[test]
fn a_retry_goes_to_another_endpoint_while_there_is_one() {
    let (bad, good) = (failing(usize::MAX), Backend::healthy());
    let retry = RETRY.replace(
        "{retry",
        "{retryConstraint: {minRetryRate: {count: 1000}}, retry",
    );
    let sidecar = Sidecar::start(&policy(&[bad.address, good.address], &retry));
    for _ in 0..30 {
        assert_eq!(sidecar.get("/").status, 200);
    }
    assert_eq!(good.seen().len(), 30);
}

#[test]
fn retries_stay_within_the_budget() {
    let backend = failing(usize::MAX);
    let budget = "  defaults: {retry: {attempts: 3, codes: [503], backoff: 0ms}, retryConstraint: {budget: {percent: 20, interval: 100s}, minRetryRate: {count: 5, interval: 100s}}}\n";
    let sidecar = Sidecar::start(&policy(&[backend.address], budget));
    let mut client = sidecar.client();
    for _ in 0..200 {
        let answer = client.get("/");
        assert_eq!(
            (answer.status, answer.reason()),
            (503, ""),
            "over the budget the app's answer passes without a mark of ours"
        );
    }
    let retries = backend.seen().len() - 200;
    assert_eq!(retries, 40, "20 % of 200, and the floor is part of it");
    assert!(
        sidecar.metric(r#"outrigger_retries_stopped_total{backend="app",why="budget_spent"}"#)
            > 100.0
    );
}

#[test]
fn a_wait_that_the_app_asks_for_is_kept_if_there_is_time_and_else_the_answer_passes() {
    let backend = Backend::answering(|_| {
        "HTTP/1.1 503 No\r\nretry-after: 3600\r\ncontent-length: 0\r\n\r\n".into()
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], RETRY));
    let answer = sidecar.get("/");
    assert_eq!(
        (answer.status, answer.header("retry-after")),
        (503, Some("3600"))
    );
    assert_eq!(backend.seen().len(), 1);
    assert_eq!(
        sidecar.metric(r#"outrigger_retries_stopped_total{backend="app",why="no_time_left"}"#),
        1.0
    );
}

#[test]
fn in_shadow_mode_nothing_is_repeated_and_it_is_counted() {
    let backend = failing(usize::MAX);
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &RETRY.replace("{attempts", "{mode: Shadow, attempts"),
    ));
    assert_eq!(sidecar.get("/").status, 503);
    assert_eq!(backend.seen().len(), 1);
    assert_eq!(
        sidecar.metric(r#"outrigger_retries_stopped_total{backend="app",why="shadow"}"#),
        1.0
    );
}

#[test]
fn a_client_that_leaves_during_the_backoff_ends_the_request() {
    let backend = failing(usize::MAX);
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &RETRY.replace("backoff: 1ms", "backoff: 10s, maxBackoff: 10s"),
    ));
    let mut client = sidecar.client();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("the first attempt was made", || backend.seen().len() == 1);
    drop(client);
    eventually("nothing is in flight", || sidecar.in_flight() == 0);
    assert_eq!(backend.seen().len(), 1);
}

/// A chunk's size that comes apart from its bytes is read as nothing; repeated as a chunk, nothing would be the end of the body.
#[test]
fn a_chunked_body_in_awkward_pieces_is_sent_again_as_it_was() {
    let backend = failing(1);
    let sidecar = Sidecar::start(&policy(&[backend.address], RETRY));
    let mut client = sidecar.client();
    client.send("PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
    for piece in [
        "5\r\nhello",
        "\r\n6",
        "\r\n world\r",
        "\n0\r\n",
        "x-trailer: 1\r\n\r\n",
    ] {
        client.send(piece);
        crate::support::take(std::time::Duration::from_millis(5));
    }
    assert_eq!(client.answer().text(), "there");
    assert!(
        backend
            .seen()
            .iter()
            .all(|seen| seen.body == b"hello world"),
        "{:?}",
        backend.seen()
    );
    assert_eq!((backend.seen().len(), backend.connections()), (2, 1));
}

#[test]
fn a_request_that_retries_twice_takes_one_place_among_the_parallel_retries() {
    let backend = failing(2);
    let limits = "  defaults: {retry: {attempts: 2, codes: [503], backoff: 1ms}, connectionLimits: {maxParallelRetries: 1}}\n";
    let sidecar = Sidecar::start(&policy(&[backend.address], limits));
    assert_eq!(sidecar.get("/").text(), "there");
}
