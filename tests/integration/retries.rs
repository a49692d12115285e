//! Retries: which failures are retried, on which endpoint, and what stops them.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::{
    ScriptedBackend, Sidecar,
    backend::{ok_response, response},
    eventually,
    policy::policy,
};

const SHORT_BACKOFF: &str = "backoff: 1ms";

/// Returns two retries of each retryable failure, with these further fields.
fn retry(fields: &str) -> String {
    format!(
        "retry: {{attempts: 2, codes: [502, 503, 504], \
         retryOn: [connect-failure, reset-before-request, reset, timeout], {fields}}}"
    )
}

fn retry_section(fields: &str) -> String {
    format!("  defaults: {{{}}}\n", retry(fields))
}

/// A budget that exceeds the retries of a test.
const AMPLE_RETRY_BUDGET: &str = "  defaults: {retryConstraint: {minRetryRate: {count: 1000}}}\n";

/// Starts a backend that responds with 503 this number of times, and then with 200.
fn backend_failing_first(times: usize) -> ScriptedBackend {
    let count = AtomicUsize::new(0);
    ScriptedBackend::responding_with(move |_| {
        if count.fetch_add(1, Ordering::SeqCst) < times {
            response(503, "failing")
        } else {
            ok_response("hello")
        }
    })
}

#[test]
fn a_503_is_retried_on_the_same_connection() {
    let backend = backend_failing_first(2);
    let sidecar = Sidecar::start(&policy(&[backend.address], &retry_section(SHORT_BACKOFF)));
    let response = sidecar.get("/");
    assert_eq!((response.status, response.text().as_str()), (200, "hello"));
    let attempts: Vec<String> = backend
        .requests()
        .iter()
        .map(|request| request.header("x-outrigger-attempt").unwrap().to_owned())
        .collect();
    assert_eq!(attempts, ["1", "2", "3"]);
    assert_eq!(
        backend.connections(),
        1,
        "a discarded response leaves its connection open"
    );
    assert_eq!(sidecar.access_log_lines(1)[0]["attempts"], 3);
    assert_eq!(
        sidecar.metric(r#"outrigger_retries_total{backend="app"}"#),
        2.0
    );
}

#[test]
fn the_last_response_of_the_backend_is_forwarded() {
    let backend = backend_failing_first(usize::MAX);
    let sidecar = Sidecar::start(&policy(&[backend.address], &retry_section(SHORT_BACKOFF)));
    let response = sidecar.get("/");
    assert_eq!(
        (response.status, response.text().as_str(), response.reason()),
        (503, "failing", "")
    );
    assert_eq!(backend.requests().len(), 3);
    assert_eq!(
        sidecar
            .metric(r#"outrigger_retries_stopped_total{backend="app",why="attempts_exhausted"}"#),
        1.0
    );
}

#[test]
fn a_post_that_may_have_been_processed_is_never_retried() {
    let backend = backend_failing_first(usize::MAX);
    let sidecar = Sidecar::start(&policy(&[backend.address], &retry_section(SHORT_BACKOFF)));
    assert_eq!(sidecar.client().post("/", "pay").text(), "failing");
    assert_eq!(backend.requests().len(), 1);

    let resetting = ScriptedBackend::start(|mut connection| {
        connection.read_request();
        connection.reset();
    });
    let sidecar = Sidecar::start(&policy(&[resetting.address], &retry_section(SHORT_BACKOFF)));
    let response = sidecar.client().post("/", "pay");
    assert_eq!(
        (response.status, response.reason()),
        (
            502,
            format!("upstream_reset:{}", resetting.address).as_str()
        )
    );
    assert_eq!(resetting.requests().len(), 1);
}

#[test]
fn a_post_with_an_idempotency_key_or_retry_non_idempotent_is_retried() {
    let backend = backend_failing_first(1);
    let sidecar = Sidecar::start(&policy(&[backend.address], &retry_section(SHORT_BACKOFF)));
    let request =
        "POST / HTTP/1.1\r\nhost: a\r\nidempotency-key: 7\r\ncontent-length: 3\r\n\r\npay";
    assert_eq!(
        sidecar.client().send(request).read_response().text(),
        "hello"
    );
    assert!(
        backend
            .requests()
            .iter()
            .all(|request| request.body == b"pay")
            && backend.requests().len() == 2
    );

    let backend = backend_failing_first(1);
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &retry_section("backoff: 1ms, retryNonIdempotent: true"),
    ));
    assert_eq!(sidecar.client().post("/", "pay").text(), "hello");
}

#[test]
fn a_retry_of_another_sidecar_is_not_retried_again() {
    let backend = backend_failing_first(usize::MAX);
    let sidecar = Sidecar::start(&policy(&[backend.address], &retry_section(SHORT_BACKOFF)));
    let mut client = sidecar.client();
    let request_with_attempt = |attempt: &str| {
        format!("GET / HTTP/1.1\r\nhost: a\r\nx-outrigger-attempt: {attempt}\r\n\r\n")
    };
    assert_eq!(
        client
            .send(request_with_attempt("2"))
            .read_response()
            .status,
        503
    );
    assert_eq!(backend.requests().len(), 1);
    assert_eq!(
        backend.requests()[0].header("x-outrigger-attempt"),
        Some("2"),
        "the attempts of both sidecars are counted together"
    );
    assert_eq!(
        sidecar.metric(r#"outrigger_retries_stopped_total{backend="app",why="already_retried"}"#),
        1.0
    );
    for attempt in ["1", "0", "many"] {
        let sent_before = backend.requests().len();
        assert_eq!(
            client
                .send(request_with_attempt(attempt))
                .read_response()
                .status,
            503
        );
        assert_eq!(backend.requests().len(), sent_before + 3, "{attempt}");
    }
}

#[test]
fn a_connect_failure_is_retried_on_another_endpoint_for_every_method() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(
        &[ScriptedBackend::unused_address(), backend.address],
        AMPLE_RETRY_BUDGET,
    ));
    for _ in 0..20 {
        assert_eq!(
            sidecar.client().post("/", "pay").status,
            200,
            "no endpoint has received the request, so no retry section is required"
        );
    }
    assert_eq!(backend.requests().len(), 20);
}

#[test]
fn an_unreachable_backend_is_reported_as_connect_failed() {
    let unreachable = ScriptedBackend::unused_address();
    let sidecar = Sidecar::start(&policy(&[unreachable], ""));
    let response = sidecar.get("/");
    assert_eq!(
        (response.status, response.reason()),
        (502, format!("connect_failed:{unreachable}").as_str())
    );
    assert!(
        response
            .header("proxy-status")
            .unwrap()
            .contains("error=connection_refused")
    );
    assert_eq!(
        sidecar.access_log_lines(1)[0]["attempts"],
        3,
        "two transparent retries"
    );
}

#[test]
fn a_get_that_is_reset_before_the_response_is_retried() {
    let backend = ScriptedBackend::start(|mut connection| {
        connection.read_request();
        if connection.number == 1 {
            return connection.reset();
        }
        connection.send(ok_response("hello"));
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], &retry_section(SHORT_BACKOFF)));
    assert_eq!(sidecar.get("/").text(), "hello");
}

#[test]
fn a_body_is_replayed_up_to_max_buffered_body_and_not_beyond() {
    let retry = retry_section("backoff: 1ms, maxBufferedBody: 1Ki");
    for (length, expected, requests) in [(1_024, "hello", 2), (1_025, "failing", 1)] {
        let backend = backend_failing_first(1);
        let sidecar = Sidecar::start(&policy(&[backend.address], &retry));
        let body = "x".repeat(length);
        let response = sidecar
            .client()
            .send(format!(
                "PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n{body}"
            ))
            .read_response();
        assert_eq!(response.text(), expected, "{length} bytes");
        assert!(
            backend.requests().len() == requests
                && backend
                    .requests()
                    .iter()
                    .all(|request| request.body == body.as_bytes()),
            "{length} bytes"
        );
    }
}

#[test]
fn a_retry_is_sent_to_another_endpoint_if_there_is_one() {
    let (failing, healthy) = (
        backend_failing_first(usize::MAX),
        ScriptedBackend::healthy(),
    );
    let defaults = format!(
        "  defaults: {{retryConstraint: {{minRetryRate: {{count: 1000}}}}, {}}}\n",
        retry(SHORT_BACKOFF)
    );
    let sidecar = Sidecar::start(&policy(&[failing.address, healthy.address], &defaults));
    for _ in 0..30 {
        assert_eq!(sidecar.get("/").status, 200);
    }
    assert_eq!(healthy.requests().len(), 30);
}

#[test]
fn retries_stay_within_the_budget() {
    let backend = backend_failing_first(usize::MAX);
    let budget = "  defaults: {retry: {attempts: 3, codes: [503], backoff: 0ms}, \
        retryConstraint: {budget: {percent: 20, interval: 100s}, \
        minRetryRate: {count: 5, interval: 100s}}}\n";
    let sidecar = Sidecar::start(&policy(&[backend.address], budget));
    let mut client = sidecar.client();
    for _ in 0..200 {
        let response = client.get("/");
        assert_eq!(
            (response.status, response.reason()),
            (503, ""),
            "without a budget, the response of the backend is forwarded unchanged"
        );
    }
    let retries = backend.requests().len() - 200;
    assert_eq!(retries, 40, "20 % of 200, which includes the minimum rate");
    assert!(
        sidecar.metric(r#"outrigger_retries_stopped_total{backend="app",why="budget_spent"}"#)
            > 100.0
    );
}

#[test]
fn a_response_whose_retry_after_exceeds_the_deadline_is_forwarded() {
    let backend = ScriptedBackend::responding_with(|_| {
        "HTTP/1.1 503 No\r\nretry-after: 3600\r\ncontent-length: 0\r\n\r\n".into()
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], &retry_section(SHORT_BACKOFF)));
    let response = sidecar.get("/");
    assert_eq!(
        (response.status, response.header("retry-after")),
        (503, Some("3600"))
    );
    assert_eq!(backend.requests().len(), 1);
    assert_eq!(
        sidecar.metric(r#"outrigger_retries_stopped_total{backend="app",why="no_time_left"}"#),
        1.0
    );
}

#[test]
fn shadow_retries_are_counted_and_not_sent() {
    let backend = backend_failing_first(usize::MAX);
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &retry_section("backoff: 1ms, mode: Shadow"),
    ));
    assert_eq!(sidecar.get("/").status, 503);
    assert_eq!(backend.requests().len(), 1);
    assert_eq!(
        sidecar.metric(r#"outrigger_retries_stopped_total{backend="app",why="shadow"}"#),
        1.0
    );
}

#[test]
fn a_client_disconnect_during_the_backoff_ends_the_request() {
    let backend = backend_failing_first(usize::MAX);
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &retry_section("backoff: 10s, maxBackoff: 10s"),
    ));
    let mut client = sidecar.client();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("the first attempt has arrived", || {
        backend.requests().len() == 1
    });
    drop(client);
    eventually("nothing is in flight", || sidecar.in_flight() == 0);
    assert_eq!(backend.requests().len(), 1);
}

/// A chunk size can arrive before the bytes of its chunk, which reads as an empty piece. If that
/// piece were replayed as a chunk, it would end the body.
#[test]
fn a_chunked_body_split_at_any_byte_is_replayed_unchanged() {
    let backend = backend_failing_first(1);
    let sidecar = Sidecar::start(&policy(&[backend.address], &retry_section(SHORT_BACKOFF)));
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
        crate::support::simulate_delay(std::time::Duration::from_millis(5));
    }
    assert_eq!(client.read_response().text(), "hello");
    assert!(
        backend
            .requests()
            .iter()
            .all(|request| request.body == b"hello world"),
        "{:?}",
        backend.requests()
    );
    assert_eq!((backend.requests().len(), backend.connections()), (2, 1));
}

#[test]
fn a_request_that_retries_twice_takes_one_parallel_retry_permit() {
    let backend = backend_failing_first(2);
    let limits = "  defaults: {retry: {attempts: 2, codes: [503], backoff: 1ms}, \
        connectionLimits: {maxParallelRetries: 1}}\n";
    let sidecar = Sidecar::start(&policy(&[backend.address], limits));
    assert_eq!(sidecar.get("/").text(), "hello");
}
