//! Limits of the whole service: in a real Redis, or divided by the number of instances.

use std::time::{Duration, Instant};

use crate::support::{
    ScriptedBackend, Sidecar,
    backend::ok_response,
    eventually,
    policy::{policy, quoted_addresses},
    redis::RedisServer,
};

const SHARED_RULE: &str = "{name: all, limit: {requests: 1, unit: Hour, burst: 6}}";

/// A policy with rules of all instances, and with more below `globalRateLimit`.
fn policy_with_global_rules(
    backend: &ScriptedBackend,
    rules: &str,
    backend_fields: &str,
) -> String {
    let sections = format!(
        "  globalRateLimit: {{{backend_fields}}}\n  defaults:\n    rateLimit: {{global: {{rules: [{rules}]}}}}\n"
    );
    policy(&[backend.address], &sections)
}

fn redis_fields(redis: &RedisServer) -> String {
    format!(
        "backend: {{type: Redis, redis: {{url: \"redis://{}\"}}}}, timeout: 1s",
        redis.address
    )
}

#[test]
fn two_instances_share_one_bucket() {
    let (Some(redis), backend) = (RedisServer::start(None), ScriptedBackend::healthy()) else {
        return;
    };
    let text = policy_with_global_rules(&backend, SHARED_RULE, &redis_fields(&redis));
    let instances = [Sidecar::start(&text), Sidecar::start(&text)];
    instances
        .iter()
        .for_each(Sidecar::wait_for_global_rate_limit_connection);
    let responses: Vec<_> = (0..8).map(|turn| instances[turn % 2].get("/")).collect();
    assert_eq!(
        responses
            .iter()
            .map(|answer| answer.status)
            .collect::<Vec<_>>(),
        [200, 200, 200, 200, 200, 200, 429, 429]
    );
    assert_eq!(
        responses[0].header("ratelimit"),
        Some(r#""all";r=5;t=3600"#)
    );
    assert_eq!(
        (
            responses[6].reason(),
            responses[6].header("ratelimit-policy")
        ),
        ("rate_limited:all", Some(r#""all";q=1;w=3600"#))
    );
    let wait: u64 = responses[7].header("retry-after").unwrap().parse().unwrap();
    assert!((3_590..=3_600).contains(&wait), "{wait}");
    assert_eq!(
        instances[0].global_rate_limit_requests("granted")
            + instances[1].global_rate_limit_requests("granted"),
        6.0
    );
    assert_eq!(backend.requests().len(), 6);
}

#[test]
fn shared_buckets_are_separated_by_key_and_prefix_and_contain_no_secrets() {
    let (Some(redis), backend) = (
        RedisServer::start(Some("pa:ss@word")),
        ScriptedBackend::healthy(),
    ) else {
        return;
    };
    let rule = "{name: each, clientSelectors: [{headers: [{name: x-key, type: Distinct}]}], limit: {requests: 1, unit: Hour}}";
    let url = format!("redis://:pa%3Ass%40word@{}/3", redis.address);
    let text = |prefix: &str| {
        policy_with_global_rules(
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
        .for_each(Sidecar::wait_for_global_rate_limit_connection);
    let status_for_key = |sidecar: &Sidecar, key: &str| {
        sidecar
            .client()
            .send(format!("GET / HTTP/1.1\r\nhost: a\r\nx-key: {key}\r\n\r\n"))
            .read_response()
            .status
    };
    assert_eq!(
        ["my-secret", "b", "my-secret"].map(|key| status_for_key(&first, key)),
        [200, 200, 429]
    );
    assert_eq!(status_for_key(&second, "my-secret"), 200, "another service");
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
    let events = first.events().join("\n");
    assert!(
        events.contains("globalRateLimit") && !events.contains("word@"),
        "{events}"
    );
}

#[test]
fn a_noisy_key_does_not_exhaust_the_bucket_of_all_keys() {
    let (Some(redis), backend) = (RedisServer::start(None), ScriptedBackend::healthy()) else {
        return;
    };
    let rules = format!(
        "{SHARED_RULE}, {{name: each, clientSelectors: [{{headers: [{{name: x-key, type: Distinct}}]}}], limit: {{requests: 1, unit: Hour, burst: 3}}}}"
    );
    let sidecar = Sidecar::start(&policy_with_global_rules(
        &backend,
        &rules,
        &redis_fields(&redis),
    ));
    sidecar.wait_for_global_rate_limit_connection();
    let send_with_key = |key: &str| {
        let answer = sidecar
            .client()
            .send(format!("GET / HTTP/1.1\r\nhost: a\r\nx-key: {key}\r\n\r\n"))
            .read_response();
        (answer.status, answer.reason().to_owned())
    };
    let noisy: Vec<_> = (0..30).map(|_| send_with_key("noisy").1).collect();
    assert_eq!(
        noisy
            .iter()
            .filter(|reason| *reason == "rate_limited:each")
            .count(),
        27
    );
    assert_eq!(
        ["a", "b", "c", "d"].map(|key| send_with_key(key).1),
        ["", "", "", "rate_limited:all"],
        "three of six were left"
    );
}

#[test]
fn the_keys_of_a_global_rule_are_bounded() {
    let (Some(redis), backend) = (RedisServer::start(None), ScriptedBackend::healthy()) else {
        return;
    };
    let rule = "{name: each, clientSelectors: [{headers: [{name: x-key, type: Distinct}]}], limit: {requests: 1, unit: Hour, burst: 2}}";
    let sidecar = Sidecar::start(
        &policy_with_global_rules(&backend, rule, &redis_fields(&redis))
            .replace("rateLimit: {global", "rateLimit: {maxKeys: 5, global"),
    );
    sidecar.wait_for_global_rate_limit_connection();
    let status_for_key = |key: usize| {
        sidecar
            .client()
            .send(format!(
                "GET / HTTP/1.1\r\nhost: a\r\nx-key: k{key}\r\n\r\n"
            ))
            .read_response()
            .status
    };
    assert_eq!(
        (0..50).filter(|key| status_for_key(*key) == 200).count(),
        5 + 2,
        "all others share two tokens"
    );
    assert_eq!(redis.all_keys(0).len(), 5 + 1);
}

#[test]
fn an_error_of_redis_is_reported_in_readiness() {
    let (Some(redis), backend) = (RedisServer::start(None), ScriptedBackend::healthy()) else {
        return;
    };
    let sidecar = Sidecar::start(&policy_with_global_rules(
        &backend,
        SHARED_RULE,
        &redis_fields(&redis),
    ));
    sidecar.wait_for_global_rate_limit_connection();
    assert_eq!(redis.run_command::<String>("CONFIG SET maxmemory 1"), "OK");
    let report = || sidecar.call_admin("GET", "/readyz?verbose").text();
    eventually("it is said", || {
        sidecar.get("/").status == 200
            && report().contains("[!] global-rate-limit")
            && report().contains("OOM")
    });
    assert_eq!(redis.run_command::<String>("CONFIG SET maxmemory 0"), "OK");
    eventually("the limit holds again", || {
        sidecar.get("/").header("ratelimit").is_some()
    });
}

#[test]
fn a_shared_bucket_admits_its_rate_when_overloaded() {
    let (Some(redis), backend) = (RedisServer::start(None), ScriptedBackend::healthy()) else {
        return;
    };
    let sidecar = Sidecar::start(&policy_with_global_rules(
        &backend,
        "{name: all, limit: {requests: 100, unit: Second, burst: 10}}",
        &redis_fields(&redis),
    ));
    sidecar.wait_for_global_rate_limit_connection();
    let mut client = sidecar.client();
    let began = Instant::now();
    let mut passed = 0;
    while began.elapsed() < Duration::from_secs(3) {
        passed += u32::from(client.get("/").status == 200);
    }
    let admitted_max = 100.0 * began.elapsed().as_secs_f64() + 10.0 + 1.0;
    assert!(
        f64::from(passed) <= admitted_max && f64::from(passed) >= 0.97 * (admitted_max - 12.0),
        "{passed} of {admitted_max}"
    );
}

#[test]
fn a_shared_bucket_is_charged_the_cost_of_the_response() {
    let (Some(redis), backend) = (
        RedisServer::start(None),
        ScriptedBackend::responding_with(|_| {
            ok_response("x").replace("\r\n\r\n", "\r\nx-cost: 4\r\n\r\n")
        }),
    ) else {
        return;
    };
    let rule = "{name: worth, limit: {requests: 1, unit: Hour, burst: 6}, cost: {request: {from: Number, number: 0}, response: {from: Header, header: x-cost}}}";
    let sidecar = Sidecar::start(&policy_with_global_rules(
        &backend,
        rule,
        &redis_fields(&redis),
    ));
    sidecar.wait_for_global_rate_limit_connection();
    let mut client = sidecar.client();
    assert_eq!(client.get("/").status, 200);
    eventually("the first answer is paid for", || {
        redis.run_command("EXISTS test:in/worth")
    });
    assert_eq!(
        client.get("/").header("ratelimit"),
        Some(r#""worth";r=2;t=3600"#)
    );
    eventually("it is in debt", || client.get("/").status == 429);
}

#[test]
fn an_unreachable_redis_fails_open_unless_fail_closed_is_set() {
    let backend = ScriptedBackend::healthy();
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let engine = format!("backend: {{type: Redis, redis: {{url: \"redis://{nowhere}\"}}}}");
    let fail_open = Sidecar::start(&policy_with_global_rules(&backend, SHARED_RULE, &engine));
    assert!((0..10).all(|_| fail_open.get("/").status == 200));
    assert_eq!(
        fail_open.global_rate_limit_requests("unavailable"),
        10.0,
        "each is counted"
    );
    eventually("it is said", || {
        fail_open
            .call_admin("GET", "/readyz?verbose")
            .text()
            .contains("global-rate-limit")
    });
    let report = fail_open.call_admin("GET", "/readyz?verbose");
    assert!(
        report.status == 200
            && report.text().contains(&format!("redis at {nowhere} ("))
            && report.text().contains("policy.yaml:"),
        "{}",
        report.text()
    );

    let fail_closed = Sidecar::start(&policy_with_global_rules(
        &backend,
        SHARED_RULE,
        &format!("{engine}, failClosed: true"),
    ));
    let refusal = fail_closed.get("/");
    assert_eq!(
        (
            refusal.status,
            refusal.reason(),
            refusal.header("retry-after")
        ),
        (503, "rate_limit_unavailable:all", Some("1"))
    );
    let shadow = Sidecar::start(&policy_with_global_rules(
        &backend,
        &SHARED_RULE.replace("name: all,", "name: all, mode: Shadow,"),
        &format!("{engine}, failClosed: true"),
    ));
    assert_eq!(shadow.get("/").status, 200);
}

#[test]
fn a_wrong_password_is_reported_with_its_location_and_never_shown() {
    let (Some(redis), backend) = (
        RedisServer::start(Some("right")),
        ScriptedBackend::healthy(),
    ) else {
        return;
    };
    let engine = format!(
        "backend: {{type: Redis, redis: {{url: \"redis://:wrong-one@{}\"}}}}",
        redis.address
    );
    let sidecar = Sidecar::start(&policy_with_global_rules(&backend, SHARED_RULE, &engine));
    let report = || sidecar.call_admin("GET", "/readyz?verbose").text();
    eventually("it is said", || report().contains("correct `url`"));
    assert!(
        report().contains("policy.yaml:") && !report().contains("wrong-one"),
        "{}",
        report()
    );
    assert_eq!(sidecar.get("/").status, 200);
}

#[test]
fn a_stalled_redis_delays_only_the_first_requests() {
    let (Some(redis), backend) = (RedisServer::start(None), ScriptedBackend::healthy()) else {
        return;
    };
    let sidecar = Sidecar::start(&policy_with_global_rules(
        &backend,
        SHARED_RULE,
        &redis_fields(&redis).replace("1s", "20ms"),
    ));
    sidecar.wait_for_global_rate_limit_connection();
    redis.stall();
    let mut client = sidecar.client();
    let began = Instant::now();
    assert!(
        (0..500).all(|_| client.get("/").status == 200),
        "nobody is refused"
    );
    let (took, timeouts) = (
        began.elapsed(),
        sidecar.global_rate_limit_requests("timeout"),
    );
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
fn a_restarted_or_flushed_redis_is_used_again() {
    let (Some(redis), backend) = (RedisServer::start(None), ScriptedBackend::healthy()) else {
        return;
    };
    let sidecar = Sidecar::start(&policy_with_global_rules(
        &backend,
        SHARED_RULE,
        &redis_fields(&redis).replace("redis://", "redis://:@"),
    ));
    sidecar.wait_for_global_rate_limit_connection();
    let mut client = sidecar.client();
    assert!((0..6).all(|_| client.get("/").status == 200));
    assert_eq!(client.get("/").status, 429);
    let redis = redis.restart();
    eventually("what was forgotten is counted anew", || {
        client.get("/").header("ratelimit") == Some(r#""all";r=5;t=3600"#)
    });
    assert_eq!(redis.run_command::<String>("SCRIPT FLUSH"), "OK");
    eventually("the script is brought there again", || {
        client.get("/").status == 429
    });
}

#[test]
fn local_limits_are_checked_before_global_limits() {
    let (Some(redis), backend) = (RedisServer::start(None), ScriptedBackend::healthy()) else {
        return;
    };
    let text = policy_with_global_rules(&backend, SHARED_RULE, &redis_fields(&redis)).replace(
        "global: {rules",
        "local: {rules: [{name: own, limit: {requests: 1, unit: Hour, burst: 2}}]}, global: {rules",
    );
    let sidecar = Sidecar::start(&text);
    sidecar.wait_for_global_rate_limit_connection();
    assert_eq!(
        (0..20).filter(|_| sidecar.get("/").status == 200).count(),
        2
    );
    assert_eq!(
        sidecar.global_rate_limit_requests("granted"),
        2.0,
        "the flood does not reach the engine"
    );
}

#[test]
fn without_a_shared_store_each_instance_enforces_its_share() {
    let backend = ScriptedBackend::healthy();
    let peers = |count: usize| {
        let peers: Vec<ScriptedBackend> = (0..count).map(|_| ScriptedBackend::healthy()).collect();
        let list = quoted_addresses(&peers.iter().collect::<Vec<_>>()).join(", ");
        let text = policy_with_global_rules(
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
