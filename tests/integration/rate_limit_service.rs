//! Limits of the whole service, kept by a server of Envoy's rate limit protocol: a small one, after the published messages.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, Response};
use prost::Message;

use crate::support::{
    Backend, Sidecar, eventually,
    http2::{Call, Http2Backend, collect},
    sidecar::policy,
};

#[derive(Clone, PartialEq, Message)]
struct Asked {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(message, repeated, tag = "2")]
    descriptors: Vec<Descriptor>,
    #[prost(uint32, tag = "3")]
    hits: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Descriptor {
    #[prost(message, repeated, tag = "1")]
    entries: Vec<Pair>,
    #[prost(message, optional, tag = "2")]
    limit: Option<Numbers>,
}

#[derive(Clone, PartialEq, Message)]
struct Pair {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// A limit (requests, unit), or a duration (seconds, nanoseconds).
#[derive(Clone, PartialEq, Message)]
struct Numbers {
    #[prost(int64, tag = "1")]
    first: i64,
    #[prost(int32, tag = "2")]
    second: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Answered {
    #[prost(int32, tag = "1")]
    overall: i32,
    #[prost(message, repeated, tag = "2")]
    statuses: Vec<Status>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(uint32, tag = "3")]
    remaining: u32,
    #[prost(message, optional, tag = "4")]
    reset: Option<Numbers>,
}

/// Counts, for ever, what it is asked for each descriptor.
fn service() -> (Http2Backend, Arc<Mutex<Vec<Asked>>>) {
    let seen: Arc<Mutex<Vec<Asked>>> = Arc::default();
    let counts: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
    let there = seen.clone();
    let server = Http2Backend::start(move |mut call: Call| {
        let (seen, counts) = (there.clone(), counts.clone());
        async move {
            assert_eq!(
                call.head.uri.path(),
                "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
            );
            let (body, _) = collect(&mut call.body).await;
            let asked = Asked::decode(&body[5..]).unwrap();
            let (limit, id) = (
                asked.descriptors[0].limit.clone().unwrap(),
                format!("{:?}", asked.descriptors[0].entries),
            );
            let hits = {
                let mut counts = counts.lock().unwrap();
                let count = counts.entry(id).or_default();
                *count += asked.hits;
                i64::from(*count)
            };
            seen.lock().unwrap().push(asked);
            let code = if hits <= limit.first { 1 } else { 2 };
            let status = Status {
                code,
                remaining: u32::try_from(limit.first - hits).unwrap_or(0),
                reset: Some(Numbers {
                    first: 41,
                    second: 500_000_000,
                }),
            };
            let message = Answered {
                overall: code,
                statuses: vec![status],
            }
            .encode_to_vec();
            let mut framed = vec![0];
            framed.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
            framed.extend_from_slice(&message);
            let head = Response::builder()
                .header("content-type", "application/grpc")
                .body(())
                .unwrap();
            let mut stream = call.respond.send_response(head, false).unwrap();
            stream.send_data(Bytes::from(framed), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            stream.send_trailers(trailers).unwrap();
        }
    });
    (server, seen)
}

fn with_service(backend: &Backend, rule: &str, url: &str) -> String {
    let engine = format!(
        "backend: {{type: RateLimitService, rateLimitService: {{url: \"{url}\", domain: shop}}}}, timeout: 1s"
    );
    policy(
        &[backend.address],
        &format!(
            "  globalRateLimit: {{{engine}}}\n  defaults:\n    rateLimit: {{global: {{rules: [{rule}]}}}}\n"
        ),
    )
}

#[test]
fn a_rate_limit_service_is_asked_in_its_own_words() {
    let ((server, seen), backend) = (service(), Backend::healthy());
    let rule = "{name: each, clientSelectors: [{headers: [{name: x-key, type: Distinct}]}], limit: {requests: 4, unit: Minute}, cost: {request: {from: Number, number: 2}}}";
    let text = with_service(&backend, rule, &format!("http://{}", server.address));
    let instances = [Sidecar::start(&text), Sidecar::start(&text)];
    instances.iter().for_each(Sidecar::engine_connects);
    let ask = |turn: usize, key: &str| {
        instances[turn % 2]
            .client()
            .send(format!("GET / HTTP/1.1\r\nhost: a\r\nx-key: {key}\r\n\r\n"))
            .answer()
    };
    let answers: Vec<_> = (0..3).map(|turn| ask(turn, "secret")).collect();
    assert_eq!(
        answers
            .iter()
            .map(|answer| answer.status)
            .collect::<Vec<_>>(),
        [200, 200, 429]
    );
    assert_eq!(answers[0].header("ratelimit"), Some(r#""each";r=2;t=42"#));
    assert_eq!(
        (answers[2].header("retry-after"), answers[2].reason()),
        (Some("42"), "rate_limited:each"),
        "never early"
    );
    assert_eq!(ask(0, "other").status, 200);
    let seen = seen.lock().unwrap();
    let first = &seen[0];
    assert_eq!(
        (
            first.domain.as_str(),
            first.hits,
            first.descriptors[0].limit.clone()
        ),
        (
            "shop",
            2,
            Some(Numbers {
                first: 4,
                second: 2
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
    assert!(!format!("{seen:?}").contains("secret"));
}

#[test]
fn a_rate_limit_service_that_is_not_there_stops_nobody_and_is_said_with_its_place() {
    let backend = Backend::healthy();
    let (server, _) = service();
    let address = server.address;
    drop(server);
    let sidecar = Sidecar::start(&with_service(
        &backend,
        "{name: all, limit: {requests: 1, unit: Hour}}",
        &format!("http://{address}"),
    ));
    assert!((0..5).all(|_| sidecar.get("/").status == 200));
    let report = || sidecar.admin("GET", "/readyz?verbose").text();
    eventually("it is said", || {
        report().contains(&format!(
            "global-rate-limit (does not gate): the rate limit service at http://{address} ("
        ))
    });
    assert!(report().contains("policy.yaml:"), "{}", report());
    assert_eq!(sidecar.engine_asked("unavailable"), 5.0);
}

#[test]
fn one_answer_that_is_none_costs_no_connection() {
    let backend = Backend::healthy();
    let calls = std::sync::atomic::AtomicU32::new(0);
    let server = Http2Backend::start(move |mut call: Call| {
        let is_first = calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
        async move {
            let head = Response::builder().header("content-type", "application/grpc");
            if is_first {
                call.respond
                    .send_response(head.header("grpc-status", "13").body(()).unwrap(), true)
                    .unwrap();
                return;
            }
            let mut stream = call
                .respond
                .send_response(head.body(()).unwrap(), false)
                .unwrap();
            stream
                .send_data(Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1]), false)
                .unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            stream.send_trailers(trailers).unwrap();
        }
    });
    let text = with_service(
        &backend,
        "{name: all, limit: {requests: 5, unit: Hour}}",
        &format!("http://{}", server.address),
    );
    let sidecar = Sidecar::start(&text);
    sidecar.engine_connects();
    assert_eq!(sidecar.get("/").status, 200);
    assert_eq!(sidecar.engine_asked("error"), 1.0);
    assert!((0..10).all(|_| sidecar.get("/").status == 200));
    assert_eq!(sidecar.engine_asked("granted"), 10.0);
    assert_eq!(server.connections(), 1);
    assert!(
        !sidecar
            .events()
            .iter()
            .any(|event| event.contains("nobody can be asked")),
        "one of eleven is no outage"
    );
}

#[test]
fn a_rate_limit_service_that_fails_is_counted_and_left_alone() {
    let backend = Backend::healthy();
    let server = Http2Backend::start(|mut call: Call| async move {
        let head = Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", "13")
            .header("grpc-message", "no")
            .body(())
            .unwrap();
        call.respond.send_response(head, true).unwrap();
    });
    let text = with_service(
        &backend,
        "{name: all, limit: {requests: 1, unit: Hour}}",
        &format!("http://{}", server.address),
    );
    let sidecar = Sidecar::start(&text);
    sidecar.engine_connects();
    assert!((0..50).all(|_| sidecar.get("/").status == 200));
    assert!(
        sidecar.engine_asked("error") >= 1.0
            && sidecar.engine_asked("error")
                + sidecar.engine_asked("suspended")
                + sidecar.engine_asked("unavailable")
                == 50.0
    );
    assert!(
        sidecar.engine_asked("error") <= 10.0,
        "{} of 50 requests asked in vain",
        sidecar.engine_asked("error")
    );
}
