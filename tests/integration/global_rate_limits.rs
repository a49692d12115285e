//! Rate limits of all instances: in a real Redis, or divided by the number of instances.

use std::time::{Duration, Instant};

use crate::support::{
    ScriptedBackend, Sidecar, eventually,
    policy::{PolicyBuilder, policy},
    redis::RedisServer,
};

const SHARED_RULE: &str = "{name: all, limit: {requests: 1, unit: Hour, burst: 6}}";

/// A rule with one bucket for each value of the header `x-key`. `limit` is its limit.
fn rule_per_key(limit: &str) -> String {
    format!(
        "{{name: each, clientSelectors: [{{headers: [{{name: x-key, type: Distinct}}]}}], \
         limit: {{{limit}}}}}"
    )
}

/// Returns sections whose `rateLimit` has these fields. `global_fields` are those of
/// `globalRateLimit`.
fn rate_limit_sections(rate_limit_fields: &str, global_fields: &str) -> String {
    format!(
        "  globalRateLimit: {{{global_fields}}}\n  defaults:\n    \
         rateLimit: {{{rate_limit_fields}}}\n"
    )
}

/// Returns a policy with these global rules. `global_fields` are those of `globalRateLimit`.
fn policy_with_global_rules(backend: &ScriptedBackend, rules: &str, global_fields: &str) -> String {
    let rules = format!("global: {{rules: [{rules}]}}");
    policy(
        &[backend.address],
        &rate_limit_sections(&rules, global_fields),
    )
}

fn redis_fields(redis: &RedisServer) -> String {
    redis_fields_with_timeout(redis, "1s")
}

fn redis_fields_with_timeout(redis: &RedisServer, timeout: &str) -> String {
    format!(
        "backend: {{type: Redis, redis: {{url: \"redis://{}\"}}}}, timeout: {timeout}",
        redis.address
    )
}

/// Returns the status and the reason for a request with this value of the header `x-key`.
fn send_with_key(sidecar: &Sidecar, key: &str) -> (u16, String) {
    let response = sidecar
        .client()
        .send(format!("GET / HTTP/1.1\r\nhost: a\r\nx-key: {key}\r\n\r\n"))
        .read_response();
    (response.status, response.reason().to_owned())
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
            .map(|response| response.status)
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
    let retry_after: u64 = responses[7].header("retry-after").unwrap().parse().unwrap();
    assert!((3_590..=3_600).contains(&retry_after), "{retry_after}");
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
    let rule = rule_per_key("requests: 1, unit: Hour");
    let url = format!("redis://:pa%3Ass%40word@{}/3", redis.address);
    let policy_with_prefix = |prefix: &str| {
        let fields = format!(
            "backend: {{type: Redis, redis: {{url: \"{url}\", prefix: {prefix}}}}}, timeout: 1s"
        );
        policy_with_global_rules(&backend, &rule, &fields)
    };
    let [first, second] =
        ["shop", "bank"].map(|prefix| Sidecar::start(&policy_with_prefix(prefix)));
    [&first, &second]
        .into_iter()
        .for_each(Sidecar::wait_for_global_rate_limit_connection);
    assert_eq!(
        ["my-secret", "b", "my-secret"].map(|key| send_with_key(&first, key).0),
        [200, 200, 429]
    );
    assert_eq!(
        send_with_key(&second, "my-secret").0,
        200,
        "another prefix has its own bucket"
    );
    assert_eq!(
        first.get("/").status,
        200,
        "a request without a key is not limited"
    );
    let keys = redis.all_keys(3);
    assert!(
        keys.len() == 3
            && keys
                .iter()
                .all(|key| key.starts_with("shop:in/each:") || key.starts_with("bank:in/each:")),
        "{keys:?}"
    );
    assert!(!format!("{keys:?}").contains("secret"), "{keys:?}");
    // The change that a reload logs contains no password.
    first.reload(&policy_with_prefix("other"));
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
        "{SHARED_RULE}, {}",
        rule_per_key("requests: 1, unit: Hour, burst: 3")
    );
    let sidecar = Sidecar::start(&policy_with_global_rules(
        &backend,
        &rules,
        &redis_fields(&redis),
    ));
    sidecar.wait_for_global_rate_limit_connection();
    let noisy: Vec<_> = (0..30)
        .map(|_| send_with_key(&sidecar, "noisy").1)
        .collect();
    assert_eq!(
        noisy
            .iter()
            .filter(|reason| *reason == "rate_limited:each")
            .count(),
        27
    );
    assert_eq!(
        ["a", "b", "c", "d"].map(|key| send_with_key(&sidecar, key).1),
        ["", "", "", "rate_limited:all"],
        "the noisy key consumes three of six tokens"
    );
}

#[test]
fn the_keys_of_a_global_rule_are_bounded() {
    let (Some(redis), backend) = (RedisServer::start(None), ScriptedBackend::healthy()) else {
        return;
    };
    let rule = rule_per_key("requests: 1, unit: Hour, burst: 2");
    let sections = rate_limit_sections(
        &format!("maxKeys: 5, global: {{rules: [{rule}]}}"),
        &redis_fields(&redis),
    );
    let sidecar = Sidecar::start(&policy(&[backend.address], &sections));
    sidecar.wait_for_global_rate_limit_connection();
    let admitted = (0..50)
        .filter(|key| send_with_key(&sidecar, &format!("k{key}")).0 == 200)
        .count();
    assert_eq!(
        admitted,
        5 + 2,
        "the keys over the maximum share two tokens"
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
    eventually("readiness reports the error", || {
        sidecar.get("/").status == 200
            && report().contains("[!] global-rate-limit")
            && report().contains("OOM")
    });
    assert_eq!(redis.run_command::<String>("CONFIG SET maxmemory 0"), "OK");
    eventually("the limit is enforced again", || {
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
    let start = Instant::now();
    let mut admitted = 0;
    while start.elapsed() < Duration::from_secs(3) {
        admitted += u32::from(client.get("/").status == 200);
    }
    let admitted_max = 100.0 * start.elapsed().as_secs_f64() + 10.0 + 1.0;
    assert!(
        f64::from(admitted) <= admitted_max && f64::from(admitted) >= 0.97 * (admitted_max - 12.0),
        "{admitted} of {admitted_max}"
    );
}

#[test]
fn a_shared_bucket_is_charged_the_cost_of_the_response() {
    let (Some(redis), backend) = (
        RedisServer::start(None),
        ScriptedBackend::responding_with(|_| {
            "HTTP/1.1 200 OK\r\nx-cost: 4\r\ncontent-length: 1\r\n\r\nx".to_owned()
        }),
    ) else {
        return;
    };
    let rule = "{name: cost, limit: {requests: 1, unit: Hour, burst: 6}, \
                cost: {request: {from: Number, number: 0}, \
                response: {from: Header, header: x-cost}}}";
    let sidecar = Sidecar::start(&policy_with_global_rules(
        &backend,
        rule,
        &redis_fields(&redis),
    ));
    sidecar.wait_for_global_rate_limit_connection();
    let mut client = sidecar.client();
    assert_eq!(client.get("/").status, 200);
    eventually("the cost of the first response is charged", || {
        redis.run_command("EXISTS test:in/cost")
    });
    assert_eq!(
        client.get("/").header("ratelimit"),
        Some(r#""cost";r=2;t=3600"#)
    );
    eventually("the bucket is in debt", || client.get("/").status == 429);
}

#[test]
fn an_unreachable_redis_fails_open_unless_fail_closed_is_set() {
    let backend = ScriptedBackend::healthy();
    let unreachable = ScriptedBackend::unused_address();
    let engine = format!("backend: {{type: Redis, redis: {{url: \"redis://{unreachable}\"}}}}");
    let fail_open = Sidecar::start(&policy_with_global_rules(&backend, SHARED_RULE, &engine));
    assert!((0..10).all(|_| fail_open.get("/").status == 200));
    assert_eq!(
        fail_open.global_rate_limit_requests("unavailable"),
        10.0,
        "each unavailable limit is counted"
    );
    eventually("readiness reports the error", || {
        fail_open
            .call_admin("GET", "/readyz?verbose")
            .text()
            .contains("global-rate-limit")
    });
    let report = fail_open.call_admin("GET", "/readyz?verbose");
    assert!(
        report.status == 200
            && report.text().contains(&format!("redis at {unreachable} ("))
            && report.text().contains("policy.yaml:"),
        "{}",
        report.text()
    );

    let fail_closed = Sidecar::start(&policy_with_global_rules(
        &backend,
        SHARED_RULE,
        &format!("{engine}, failClosed: true"),
    ));
    let rejection = fail_closed.get("/");
    assert_eq!(
        (
            rejection.status,
            rejection.reason(),
            rejection.header("retry-after")
        ),
        (503, "rate_limit_unavailable:all", Some("1"))
    );
    let shadow = Sidecar::start(&policy_with_global_rules(
        &backend,
        "{name: all, mode: Shadow, limit: {requests: 1, unit: Hour, burst: 6}}",
        &format!("{engine}, failClosed: true"),
    ));
    assert_eq!(shadow.get("/").status, 200);
}

#[test]
fn a_wrong_password_is_reported_with_its_location_but_not_its_value() {
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
    eventually("readiness reports the error", || {
        report().contains("correct `url`")
    });
    assert!(
        report().contains("policy.yaml:") && !report().contains("wrong-one"),
        "{}",
        report()
    );
    assert_eq!(sidecar.get("/").status, 200);
}

#[test]
fn requests_do_not_wait_for_a_stalled_redis_after_the_first_timeouts() {
    let (Some(redis), backend) = (RedisServer::start(None), ScriptedBackend::healthy()) else {
        return;
    };
    let sidecar = Sidecar::start(&policy_with_global_rules(
        &backend,
        SHARED_RULE,
        &redis_fields_with_timeout(&redis, "20ms"),
    ));
    sidecar.wait_for_global_rate_limit_connection();
    redis.stall();
    let mut client = sidecar.client();
    let start = Instant::now();
    assert!(
        (0..500).all(|_| client.get("/").status == 200),
        "no request is rejected"
    );
    let (elapsed, timeouts) = (
        start.elapsed(),
        sidecar.global_rate_limit_requests("timeout"),
    );
    assert!(
        (5.0..=10.0).contains(&timeouts),
        "five requests in a row time out, and then one probe each second: {timeouts}"
    );
    assert!(
        elapsed < Duration::from_secs(5),
        "only the requests that time out are delayed: {elapsed:?}"
    );
    redis.resume();
    eventually("the limit is enforced again", || {
        client.get("/").status == 429
    });
}

#[test]
fn a_restarted_or_flushed_redis_is_used_again() {
    let (Some(redis), backend) = (RedisServer::start(None), ScriptedBackend::healthy()) else {
        return;
    };
    let sidecar = Sidecar::start(&policy_with_global_rules(
        &backend,
        SHARED_RULE,
        &format!(
            "backend: {{type: Redis, redis: {{url: \"redis://:@{}\"}}}}, timeout: 1s",
            redis.address
        ),
    ));
    sidecar.wait_for_global_rate_limit_connection();
    let mut client = sidecar.client();
    assert!((0..6).all(|_| client.get("/").status == 200));
    assert_eq!(client.get("/").status, 429);
    let redis = redis.restart();
    eventually("the bucket is full after the restart", || {
        client.get("/").header("ratelimit") == Some(r#""all";r=5;t=3600"#)
    });
    assert_eq!(redis.run_command::<String>("SCRIPT FLUSH"), "OK");
    eventually("the script is loaded again", || {
        client.get("/").status == 429
    });
}

#[test]
fn local_limits_are_checked_before_global_limits() {
    let (Some(redis), backend) = (RedisServer::start(None), ScriptedBackend::healthy()) else {
        return;
    };
    let rules = format!(
        "local: {{rules: [{{name: own, limit: {{requests: 1, unit: Hour, burst: 2}}}}]}}, \
         global: {{rules: [{SHARED_RULE}]}}"
    );
    let sections = rate_limit_sections(&rules, &redis_fields(&redis));
    let sidecar = Sidecar::start(&policy(&[backend.address], &sections));
    sidecar.wait_for_global_rate_limit_connection();
    assert_eq!(
        (0..20).filter(|_| sidecar.get("/").status == 200).count(),
        2
    );
    assert_eq!(
        sidecar.global_rate_limit_requests("granted"),
        2.0,
        "requests over the local limit do not reach Redis"
    );
}

#[test]
fn without_a_shared_store_each_instance_enforces_its_share() {
    let backend = ScriptedBackend::healthy();
    let start_peers =
        |count: usize| -> Vec<_> { (0..count).map(|_| ScriptedBackend::healthy()).collect() };
    let (four_peers, six_peers) = (start_peers(4), start_peers(6));
    let policy_with_peers = |peers: &[ScriptedBackend]| {
        let peers: Vec<_> = peers
            .iter()
            .map(|peer| format!("\"{}\"", peer.address))
            .collect();
        PolicyBuilder::to_backend(&backend)
            .backend("peers", &format!("endpoints: [{}]", peers.join(", ")))
            .sections(&rate_limit_sections(
                "global: {rules: [{name: all, limit: {requests: 1, unit: Hour, burst: 12}}]}",
                "backend: {type: Replicas, replicas: {backend: peers}}",
            ))
            .build()
    };
    let sidecar = Sidecar::start(&policy_with_peers(&four_peers));
    let count_admitted = || (0..20).filter(|_| sidecar.get("/").status == 200).count();
    assert_eq!(count_admitted(), 3, "the share is a quarter of 12");
    assert_eq!(
        sidecar.metric(r#"outrigger_rate_limit_instances{rule="in/all"}"#),
        4.0
    );
    sidecar.reload(&policy_with_peers(&six_peers));
    assert_eq!(count_admitted(), 0, "an empty bucket stays empty");
    assert_eq!(
        sidecar.metric(r#"outrigger_rate_limit_instances{rule="in/all"}"#),
        6.0
    );
}
