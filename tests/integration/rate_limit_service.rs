//! Global rate limits in a server of Envoy's rate limit protocol. The tests implement such a server
//! from the published messages.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::Response;
use outrigger::policy::{load_source, source::PolicySource};
use prost::Message;

use crate::support::{
    ScriptedBackend, Sidecar, eventually,
    http2::{
        Http2Backend, IncomingCall, grpc_message, grpc_status_trailers, read_body_and_trailers,
    },
    policy::policy,
};

#[derive(Clone, PartialEq, Message)]
struct ShouldRateLimitRequest {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(message, repeated, tag = "2")]
    descriptors: Vec<ReceivedDescriptor>,
    #[prost(uint32, tag = "3")]
    hits_addend: u32,
}

#[derive(Clone, PartialEq, Message)]
struct ReceivedDescriptor {
    #[prost(message, repeated, tag = "1")]
    entries: Vec<ReceivedDescriptorEntry>,
    #[prost(message, optional, tag = "2")]
    limit: Option<LimitOrDuration>,
}

#[derive(Clone, PartialEq, Message)]
struct ReceivedDescriptorEntry {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// Limit (requests, unit), or duration (seconds, nanoseconds).
#[derive(Clone, PartialEq, Message)]
struct LimitOrDuration {
    #[prost(int64, tag = "1")]
    requests_or_seconds: i64,
    #[prost(int32, tag = "2")]
    unit_or_nanos: i32,
}

#[derive(Clone, PartialEq, Message)]
struct ShouldRateLimitResponse {
    #[prost(int32, tag = "1")]
    overall_code: i32,
    #[prost(message, repeated, tag = "2")]
    statuses: Vec<SentDescriptorStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct SentDescriptorStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(uint32, tag = "3")]
    limit_remaining: u32,
    #[prost(message, optional, tag = "4")]
    duration_until_reset: Option<LimitOrDuration>,
}

/// Starts a service that counts the hits of each descriptor and never resets the counts.
fn start_rate_limit_service() -> (Http2Backend, Arc<Mutex<Vec<ShouldRateLimitRequest>>>) {
    let requests: Arc<Mutex<Vec<ShouldRateLimitRequest>>> = Arc::default();
    let counts: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
    let shared_requests = requests.clone();
    let server = Http2Backend::start(move |mut call: IncomingCall| {
        let (requests, counts) = (shared_requests.clone(), counts.clone());
        async move {
            assert_eq!(
                call.head.uri.path(),
                "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
            );
            let (body, _) = read_body_and_trailers(&mut call.body).await;
            let request = ShouldRateLimitRequest::decode(&body[5..]).unwrap();
            let (limit, id) = (
                request.descriptors[0].limit.clone().unwrap(),
                format!("{:?}", request.descriptors[0].entries),
            );
            let hits = {
                let mut counts = counts.lock().unwrap();
                let count = counts.entry(id).or_default();
                *count += request.hits_addend;
                i64::from(*count)
            };
            requests.lock().unwrap().push(request);
            let code = if hits <= limit.requests_or_seconds {
                1
            } else {
                2
            };
            let status = SentDescriptorStatus {
                code,
                limit_remaining: u32::try_from(limit.requests_or_seconds - hits).unwrap_or(0),
                duration_until_reset: Some(LimitOrDuration {
                    requests_or_seconds: 41,
                    unit_or_nanos: 500_000_000,
                }),
            };
            let message = ShouldRateLimitResponse {
                overall_code: code,
                statuses: vec![status],
            }
            .encode_to_vec();
            let head = Response::builder()
                .header("content-type", "application/grpc")
                .body(())
                .unwrap();
            let mut stream = call.responder.send_response(head, false).unwrap();
            stream
                .send_data(grpc_message(&message).into(), false)
                .unwrap();
            stream.send_trailers(grpc_status_trailers("0")).unwrap();
        }
    });
    (server, requests)
}

fn policy_with_rate_limit_service(backend: &ScriptedBackend, rule: &str, url: &str) -> String {
    let service = format!("rateLimitService: {{url: \"{url}\", domain: shop}}");
    let engine = format!("backend: {{type: RateLimitService, {service}}}, timeout: 1s");
    policy(
        &[backend.address],
        &format!(
            "  globalRateLimit: {{{engine}}}\n  \
             defaults:\n    rateLimit: {{global: {{rules: [{rule}]}}}}\n"
        ),
    )
}

#[test]
fn a_rate_limit_service_receives_requests_of_the_envoy_protocol() {
    let ((server, requests), backend) = (start_rate_limit_service(), ScriptedBackend::healthy());
    let rule = "{name: each, clientSelectors: [{headers: [{name: x-key, type: Distinct}]}], \
                limit: {requests: 4, unit: Minute}, \
                cost: {request: {from: Number, number: 2}}}";
    let text =
        policy_with_rate_limit_service(&backend, rule, &format!("http://{}", server.address));
    let instances = [Sidecar::start(&text), Sidecar::start(&text)];
    instances
        .iter()
        .for_each(Sidecar::wait_for_global_rate_limit_connection);
    let send_with_key = |turn: usize, key: &str| {
        instances[turn % instances.len()]
            .client()
            .send(format!("GET / HTTP/1.1\r\nhost: a\r\nx-key: {key}\r\n\r\n"))
            .read_response()
    };
    let responses: Vec<_> = (0..3).map(|turn| send_with_key(turn, "secret")).collect();
    assert_eq!(
        responses
            .iter()
            .map(|response| response.status)
            .collect::<Vec<_>>(),
        [200, 200, 429]
    );
    assert_eq!(responses[0].header("ratelimit"), Some(r#""each";r=2;t=42"#));
    assert_eq!(
        (responses[2].header("retry-after"), responses[2].reason()),
        (Some("42"), "rate_limited:each"),
        "the wait is rounded up"
    );
    assert_eq!(send_with_key(0, "other").status, 200);
    let requests = requests.lock().unwrap();
    let first = &requests[0];
    assert_eq!(
        (
            first.domain.as_str(),
            first.hits_addend,
            first.descriptors[0].limit.clone()
        ),
        (
            "shop",
            2,
            Some(LimitOrDuration {
                requests_or_seconds: 4,
                unit_or_nanos: 2
            })
        )
    );
    let pairs: Vec<_> = first.descriptors[0]
        .entries
        .iter()
        .map(|pair| (pair.key.as_str(), pair.value.as_str()))
        .collect();
    assert_eq!(
        (pairs[0], pairs[1].0, pairs[1].1.len()),
        (("rule", "in/each"), "key", 32)
    );
    assert!(!format!("{requests:?}").contains("secret"));
}

#[test]
fn an_unreachable_rate_limit_service_fails_open_and_is_reported_with_its_location() {
    let backend = ScriptedBackend::healthy();
    let (server, _) = start_rate_limit_service();
    let address = server.address;
    drop(server);
    let sidecar = Sidecar::start(&policy_with_rate_limit_service(
        &backend,
        "{name: all, limit: {requests: 1, unit: Hour}}",
        &format!("http://{address}"),
    ));
    assert!((0..5).all(|_| sidecar.get("/").status == 200));
    let report = || sidecar.call_admin("GET", "/readyz?verbose").text();
    eventually("readiness reports the service", || {
        report().contains(&format!(
            "global-rate-limit (does not affect readiness): the rate limit service at \
             http://{address} ("
        ))
    });
    assert!(report().contains("policy.yaml:"), "{}", report());
    assert_eq!(sidecar.global_rate_limit_requests("unavailable"), 5.0);
}

#[test]
fn an_error_response_does_not_close_the_connection() {
    let backend = ScriptedBackend::healthy();
    let calls = std::sync::atomic::AtomicU32::new(0);
    let server = Http2Backend::start(move |mut call: IncomingCall| {
        let is_first = calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
        async move {
            let head = Response::builder().header("content-type", "application/grpc");
            if is_first {
                call.responder
                    .send_response(head.header("grpc-status", "13").body(()).unwrap(), true)
                    .unwrap();
                return;
            }
            let mut stream = call
                .responder
                .send_response(head.body(()).unwrap(), false)
                .unwrap();
            stream
                .send_data(Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1]), false)
                .unwrap();
            stream.send_trailers(grpc_status_trailers("0")).unwrap();
        }
    });
    let text = policy_with_rate_limit_service(
        &backend,
        "{name: all, limit: {requests: 5, unit: Hour}}",
        &format!("http://{}", server.address),
    );
    let sidecar = Sidecar::start(&text);
    sidecar.wait_for_global_rate_limit_connection();
    assert_eq!(sidecar.get("/").status, 200);
    assert_eq!(sidecar.global_rate_limit_requests("error"), 1.0);
    assert!((0..10).all(|_| sidecar.get("/").status == 200));
    assert_eq!(sidecar.global_rate_limit_requests("granted"), 10.0);
    assert_eq!(server.connections(), 1);
    assert!(
        !sidecar
            .events()
            .iter()
            .any(|event| event.contains("rate limits is unreachable")),
        "one error of eleven responses is not an outage"
    );
}

#[test]
fn a_failing_rate_limit_service_is_counted_and_suspended() {
    let backend = ScriptedBackend::healthy();
    let server = Http2Backend::start(|mut call: IncomingCall| async move {
        let head = Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", "13")
            .header("grpc-message", "no")
            .body(())
            .unwrap();
        call.responder.send_response(head, true).unwrap();
    });
    let text = policy_with_rate_limit_service(
        &backend,
        "{name: all, limit: {requests: 1, unit: Hour}}",
        &format!("http://{}", server.address),
    );
    let sidecar = Sidecar::start(&text);
    sidecar.wait_for_global_rate_limit_connection();
    assert!((0..50).all(|_| sidecar.get("/").status == 200));
    assert!(
        sidecar.global_rate_limit_requests("error") >= 1.0
            && sidecar.global_rate_limit_requests("error")
                + sidecar.global_rate_limit_requests("suspended")
                + sidecar.global_rate_limit_requests("unavailable")
                == 50.0
    );
    assert!(
        sidecar.global_rate_limit_requests("error") <= 10.0,
        "{} of 50 requests reached the failing service",
        sidecar.global_rate_limit_requests("error")
    );
}

#[test]
fn user_information_in_the_url_is_rejected_and_not_reported() {
    let text = policy_with_rate_limit_service(
        &ScriptedBackend::healthy(),
        "{name: all, limit: {requests: 1, unit: Hour}}",
        "http://shop:secret@ratelimit:8081",
    );
    let faults = load_source(&PolicySource::from_text("a.yaml", text), &HashMap::new())
        .unwrap_err()
        .to_string();
    assert!(
        faults.contains("must not contain user information") && !faults.contains("secret"),
        "{faults}"
    );
}
