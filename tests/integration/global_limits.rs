//! Limits of the whole service: in a real Redis, or divided by the number of instances.

use std::time::{Duration, Instant};

use crate::support::{
    Backend, Sidecar,
    backend::ok,
    eventually,
    redis::Redis,
    sidecar::{addresses, policy},
};

const RULE: &str = "{name: all, limit: {requests: 1, unit: Hour, burst: 6}}";

/// A policy with rules of all instances, and with more below `globalRateLimit`.
fn with_engine(backend: &Backend, rules: &str, engine: &str) -> String {
    let sections = format!(
        "  globalRateLimit: {{{engine}}}\n  defaults:\n    rateLimit: {{global: {{rules: [{rules}]}}}}\n"
    );
    policy(&[backend.address], &sections)
}

fn engine(redis: &Redis) -> String {
    format!(
        "backend: {{type: Redis, redis: {{url: \"redis://{}\"}}}}, timeout: 1s",
        redis.address
    )
}

#[test]
fn two_instances_share_one_bucket() {
    let (Some(redis), backend) = (Redis::start(None), Backend::healthy()) else {
        return;
    };
    let text = with_engine(&backend, RULE, &engine(&redis));
    let instances = [Sidecar::start(&text), Sidecar::start(&text)];
    instances.iter().for_each(Sidecar::engine_connects);
    let answers: Vec<_> = (0..8).map(|turn| instances[turn % 2].get("/")).collect();
    assert_eq!(
        answers
            .iter()
            .map(|answer| answer.status)
            .collect::<Vec<_>>(),
        [200, 200, 200, 200, 200, 200, 429, 429]
    );
    assert_eq!(answers[0].header("ratelimit"), Some(r#""all";r=5;t=3600"#));
    assert_eq!(
        (answers[6].reason(), answers[6].header("ratelimit-policy")),
        ("rate_limited:all", Some(r#""all";q=1;w=3600"#))
    );
    let wait: u64 = answers[7].header("retry-after").unwrap().parse().unwrap();
    assert!((3_590..=3_600).contains(&wait), "{wait}");
    assert_eq!(
        instances[0].engine_asked("granted") + instances[1].engine_asked("granted"),
        6.0
    );
    assert_eq!(backend.seen().len(), 6);
}

#[test]
fn shared_buckets_are_told_apart_by_key_and_by_prefix_and_hold_no_secrets() {
    let (Some(redis), backend) = (Redis::start(Some("pa:ss@word")), Backend::healthy()) else {
        return;
    };
    let rule = "{name: each, clientSelectors: [{headers: [{name: x-key, type: Distinct}]}], limit: {requests: 1, unit: Hour}}";
    let url = format!("redis://:pa%3Ass%40word@{}/3", redis.address);
    let text = |prefix: &str| {
        with_engine(
            &backend,
            rule,
            &format!(
                "backend: {{type: Redis, redis: {{url: \"{url}\", prefix: {prefix}}}}}, timeout: 1s"
            ),
        )
    };
    let (first, second) = (Sidecar::start(&text("shop")), Sidecar::start(&text("bank")));
    [&first, &second]
        .into_iter()
        .for_each(Sidecar::engine_connects);
    let ask = |sidecar: &Sidecar, key: &str| {
        sidecar
            .client()
            .send(format!("GET / HTTP/1.1\r\nhost: a\r\nx-key: {key}\r\n\r\n"))
            .answer()
            .status
    };
    assert_eq!(
        ["my-secret", "b", "my-secret"].map(|key| ask(&first, key)),
        [200, 200, 429]
    );
    assert_eq!(ask(&second, "my-secret"), 200, "another service");
    assert_eq!(first.get("/").status, 200, "not meant");
    let keys = redis.all_keys(3);
    assert!(
        keys.len() == 3
            && keys
                .iter()
                .all(|key| key.starts_with("shop:in/each:") || key.starts_with("bank:in/each:")),
        "{keys:?}"
    );
    assert!(!format!("{keys:?}").contains("secret"), "{keys:?}");
    // What a reload compares and tells shows no password.
    first.reload(&text("other"));
    let told = first.events().join("\n");
    assert!(
        told.contains("globalRateLimit") && !told.contains("word@"),
        "{told}"
    );
}

#[test]
fn a_noisy_tenant_does_not_drain_the_bucket_of_all() {
    let (Some(redis), backend) = (Redis::start(None), Backend::healthy()) else {
        return;
    };
    let rules = format!(
        "{RULE}, {{name: each, clientSelectors: [{{headers: [{{name: x-key, type: Distinct}}]}}], limit: {{requests: 1, unit: Hour, burst: 3}}}}"
    );
    let sidecar = Sidecar::start(&with_engine(&backend, &rules, &engine(&redis)));
    sidecar.engine_connects();
    let ask = |key: &str| {
        let answer = sidecar
            .client()
            .send(format!("GET / HTTP/1.1\r\nhost: a\r\nx-key: {key}\r\n\r\n"))
            .answer();
        (answer.status, answer.reason().to_owned())
    };
    let noisy: Vec<_> = (0..30).map(|_| ask("noisy").1).collect();
    assert_eq!(
        noisy
            .iter()
            .filter(|reason| *reason == "rate_limited:each")
            .count(),
        27
    );
    assert_eq!(
        ["a", "b", "c", "d"].map(|key| ask(key).1),
        ["", "", "", "rate_limited:all"],
        "three of six were left"
    );
}

#[test]
fn the_keys_of_a_shared_rule_are_bounded_too() {
    let (Some(redis), backend) = (Redis::start(None), Backend::healthy()) else {
        return;
    };
    let rule = "{name: each, clientSelectors: [{headers: [{name: x-key, type: Distinct}]}], limit: {requests: 1, unit: Hour, burst: 2}}";
    let sidecar = Sidecar::start(
        &with_engine(&backend, rule, &engine(&redis))
            .replace("rateLimit: {global", "rateLimit: {maxKeys: 5, global"),
    );
    sidecar.engine_connects();
    let ask = |key: usize| {
        sidecar
            .client()
            .send(format!(
                "GET / HTTP/1.1\r\nhost: a\r\nx-key: k{key}\r\n\r\n"
            ))
            .answer()
            .status
    };
    assert_eq!(
        (0..50).filter(|key| ask(*key) == 200).count(),
        5 + 2,
        "all others share two tokens"
    );
    assert_eq!(redis.all_keys(0).len(), 5 + 1);
}

#[test]
fn why_a_redis_that_lives_does_not_answer_is_said() {
    let (Some(redis), backend) = (Redis::start(None), Backend::healthy()) else {
        return;
    };
    let sidecar = Sidecar::start(&with_engine(&backend, RULE, &engine(&redis)));
    sidecar.engine_connects();
    assert_eq!(redis.ask::<String>("CONFIG SET maxmemory 1"), "OK");
    let report = || sidecar.admin("GET", "/readyz?verbose").text();
    eventually("it is said", || {
        sidecar.get("/").status == 200
            && report().contains("[!] global-rate-limit")
            && report().contains("OOM")
    });
    assert_eq!(redis.ask::<String>("CONFIG SET maxmemory 0"), "OK");
    eventually("the limit holds again", || {
        sidecar.get("/").header("ratelimit").is_some()
    });
}

#[test]
fn a_shared_bucket_lets_as_much_through_as_it_should_at_ten_times_the_rate() {
    let (Some(redis), backend) = (Redis::start(None), Backend::healthy()) else {
        return;
    };
    let sidecar = Sidecar::start(&with_engine(
        &backend,
        "{name: all, limit: {requests: 100, unit: Second, burst: 10}}",
        &engine(&redis),
    ));
    sidecar.engine_connects();
    let mut client = sidecar.client();
    let began = Instant::now();
    let mut passed = 0;
    while began.elapsed() < Duration::from_secs(3) {
        passed += u32::from(client.get("/").status == 200);
    }
    let most = 100.0 * began.elapsed().as_secs_f64() + 10.0 + 1.0;
    assert!(
        f64::from(passed) <= most && f64::from(passed) >= 0.97 * (most - 12.0),
        "{passed} of {most}"
    );
}

#[test]
fn a_shared_bucket_is_charged_for_answers() {
    let (Some(redis), backend) = (
        Redis::start(None),
        Backend::answering(|_| ok("x").replace("\r\n\r\n", "\r\nx-cost: 4\r\n\r\n")),
    ) else {
        return;
    };
    let rule = "{name: worth, limit: {requests: 1, unit: Hour, burst: 6}, cost: {request: {from: Number, number: 0}, response: {from: Header, header: x-cost}}}";
    let sidecar = Sidecar::start(&with_engine(&backend, rule, &engine(&redis)));
    sidecar.engine_connects();
    let mut client = sidecar.client();
    assert_eq!(client.get("/").status, 200);
    eventually("the first answer is paid for", || {
        redis.ask("EXISTS test:in/worth")
    });
    assert_eq!(
        client.get("/").header("ratelimit"),
        Some(r#""worth";r=2;t=3600"#)
    );
    eventually("it is in debt", || client.get("/").status == 429);
}

#[test]
fn a_redis_that_cannot_be_reached_stops_nobody_unless_the_policy_says_so() {
    let backend = Backend::healthy();
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let engine = format!("backend: {{type: Redis, redis: {{url: \"redis://{nowhere}\"}}}}");
    let open = Sidecar::start(&with_engine(&backend, RULE, &engine));
    assert!((0..10).all(|_| open.get("/").status == 200));
    assert_eq!(open.engine_asked("unavailable"), 10.0, "each is counted");
    eventually("it is said", || {
        open.admin("GET", "/readyz?verbose")
            .text()
            .contains("global-rate-limit")
    });
    let report = open.admin("GET", "/readyz?verbose");
    assert!(
        report.status == 200
            && report.text().contains(&format!("redis at {nowhere} ("))
            && report.text().contains("policy.yaml:"),
        "{}",
        report.text()
    );

    let closed = Sidecar::start(&with_engine(
        &backend,
        RULE,
        &format!("{engine}, failClosed: true"),
    ));
    let refusal = closed.get("/");
    assert_eq!(
        (
            refusal.status,
            refusal.reason(),
            refusal.header("retry-after")
        ),
        (503, "rate_limit_unavailable:all", Some("1"))
    );
    let shadow = Sidecar::start(&with_engine(
        &backend,
        &RULE.replace("name: all,", "name: all, mode: Shadow,"),
        &format!("{engine}, failClosed: true"),
    ));
    assert_eq!(shadow.get("/").status, 200);
}

#[test]
fn a_wrong_password_is_said_with_its_place_and_is_not_shown() {
    let (Some(redis), backend) = (Redis::start(Some("right")), Backend::healthy()) else {
        return;
    };
    let engine = format!(
        "backend: {{type: Redis, redis: {{url: \"redis://:wrong-one@{}\"}}}}",
        redis.address
    );
    let sidecar = Sidecar::start(&with_engine(&backend, RULE, &engine));
    let report = || sidecar.admin("GET", "/readyz?verbose").text();
    eventually("it is said", || report().contains("mend `url`"));
    assert!(
        report().contains("policy.yaml:") && !report().contains("wrong-one"),
        "{}",
        report()
    );
    assert_eq!(sidecar.get("/").status, 200);
}

#[test]
fn a_redis_that_stalls_costs_the_first_requests_their_time_out_and_none_after_them() {
    let (Some(redis), backend) = (Redis::start(None), Backend::healthy()) else {
        return;
    };
    let sidecar = Sidecar::start(&with_engine(
        &backend,
        RULE,
        &engine(&redis).replace("1s", "20ms"),
    ));
    sidecar.engine_connects();
    redis.stall();
    let mut client = sidecar.client();
    let began = Instant::now();
    assert!(
        (0..500).all(|_| client.get("/").status == 200),
        "nobody is refused"
    );
    let (took, timeouts) = (began.elapsed(), sidecar.engine_asked("timeout"));
    assert!(
        (5.0..=10.0).contains(&timeouts),
        "five in a row, and a probe each second: {timeouts}"
    );
    assert!(
        took < Duration::from_secs(5),
        "500 requests wait for five answers, not for 500: {took:?}"
    );
    redis.resume();
    eventually("the limit holds again", || client.get("/").status == 429);
}

#[test]
fn a_redis_that_is_killed_or_emptied_is_found_again() {
    let (Some(redis), backend) = (Redis::start(None), Backend::healthy()) else {
        return;
    };
    let sidecar = Sidecar::start(&with_engine(
        &backend,
        RULE,
        &engine(&redis).replace("redis://", "redis://:@"),
    ));
    sidecar.engine_connects();
    let mut client = sidecar.client();
    assert!((0..6).all(|_| client.get("/").status == 200));
    assert_eq!(client.get("/").status, 429);
    let redis = redis.restart();
    eventually("what was forgotten is counted anew", || {
        client.get("/").header("ratelimit") == Some(r#""all";r=5;t=3600"#)
    });
    assert_eq!(redis.ask::<String>("SCRIPT FLUSH"), "OK");
    eventually("the script is brought there again", || {
        client.get("/").status == 429
    });
}

#[test]
fn local_limits_are_asked_first() {
    let (Some(redis), backend) = (Redis::start(None), Backend::healthy()) else {
        return;
    };
    let text = with_engine(&backend, RULE, &engine(&redis)).replace(
        "global: {rules",
        "local: {rules: [{name: own, limit: {requests: 1, unit: Hour, burst: 2}}]}, global: {rules",
    );
    let sidecar = Sidecar::start(&text);
    sidecar.engine_connects();
    assert_eq!(
        (0..20).filter(|_| sidecar.get("/").status == 200).count(),
        2
    );
    assert_eq!(
        sidecar.engine_asked("granted"),
        2.0,
        "the flood does not reach the engine"
    );
}

#[test]
fn without_an_engine_each_instance_keeps_its_share() {
    let backend = Backend::healthy();
    let peers = |count: usize| {
        let peers: Vec<Backend> = (0..count).map(|_| Backend::healthy()).collect();
        let list = addresses(&peers.iter().collect::<Vec<_>>()).join(", ");
        let text = with_engine(
            &backend,
            "{name: all, limit: {requests: 1, unit: Hour, burst: 12}}",
            "backend: {type: Replicas, replicas: {backend: peers}}",
        );
        (
            text.replace(
                "  backends:\n",
                &format!("  backends:\n    - {{name: peers, endpoints: [{list}]}}\n"),
            ),
            peers,
        )
    };
    let (text, _four) = peers(4);
    let sidecar = Sidecar::start(&text);
    let passed = || (0..20).filter(|_| sidecar.get("/").status == 200).count();
    assert_eq!(passed(), 3, "a fourth of 12");
    assert_eq!(
        sidecar.metric(r#"outrigger_rate_limit_instances{rule="in/all"}"#),
        4.0
    );
    let (text, _six) = peers(6);
    sidecar.reload(&text);
    assert_eq!(passed(), 0, "an empty share stays empty");
    assert_eq!(
        sidecar.metric(r#"outrigger_rate_limit_instances{rule="in/all"}"#),
        6.0
    );
}
