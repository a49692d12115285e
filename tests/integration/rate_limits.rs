//! Rate limits of one instance.

use crate::support::{
    Client, ScriptedBackend, Sidecar, eventually,
    policy::{PolicyBuilder, policy},
};

/// Returns defaults with these local rules, which are separated by commas.
fn local_rate_limit_section(rules: &str) -> String {
    rate_limit_section_with_fields("", rules)
}

/// Returns the same defaults with more fields of `rateLimit`. They end with a comma if they are not
/// empty.
fn rate_limit_section_with_fields(fields: &str, rules: &str) -> String {
    format!("  defaults: {{rateLimit: {{{fields}local: {{rules: [{rules}]}}}}}}\n")
}

const RULE_PER_KEY: &str = "{name: per-key, \
                            clientSelectors: [{headers: [{name: x-key, type: Distinct}]}], \
                            limit: {requests: 1, unit: Minute, burst: 3}}";
const RULE_FOR_ALL: &str = "{name: all, limit: {requests: 1, unit: Minute, burst: 5}}";

/// Returns a response with status 200 and this header.
fn response_with_header(name: &str, value: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{name}: {value}\r\ncontent-length: 1\r\n\r\nx")
}

fn send_with_key(client: &mut Client, key: &str) -> (u16, String) {
    let response = client
        .send(format!("GET / HTTP/1.1\r\nhost: a\r\nx-key: {key}\r\n\r\n"))
        .read_response();
    (response.status, response.reason().to_owned())
}

#[test]
fn a_bucket_admits_its_burst_and_then_rejects_with_retry_after() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &local_rate_limit_section(RULE_FOR_ALL),
    ));
    let mut client = sidecar.client();
    for _ in 0..5 {
        assert_eq!(client.get("/").status, 200);
    }
    let rejection = client.get("/");
    assert_eq!(
        (rejection.status, rejection.reason()),
        (429, "rate_limited:all")
    );
    let retry_after: u64 = rejection.header("retry-after").unwrap().parse().unwrap();
    assert!(
        (58..=60).contains(&retry_after),
        "one token is added each minute: {retry_after}"
    );
    assert_eq!(
        rejection.header("ratelimit-policy"),
        Some("\"all\";q=1;w=60")
    );
    assert_eq!(
        rejection.header("ratelimit"),
        Some(format!("\"all\";r=0;t={retry_after}").as_str())
    );
    assert_eq!(client.get("/").status, 429, "the connection stays open");
    assert_eq!(backend.requests().len(), 5);
    eventually("both rejections are counted", || {
        sidecar.metric(r#"outrigger_refusals_total{route="in",reason="rate_limited"}"#) == 2.0
    });
}

#[test]
fn each_key_has_its_own_bucket_and_requests_without_a_key_are_not_limited() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &local_rate_limit_section(RULE_PER_KEY),
    ));
    let mut client = sidecar.client();
    for key in ["a", "b"] {
        for _ in 0..3 {
            assert_eq!(send_with_key(&mut client, key).0, 200, "{key}");
        }
        assert_eq!(
            send_with_key(&mut client, key),
            (429, "rate_limited:per-key".to_owned())
        );
    }
    for _ in 0..10 {
        assert_eq!(client.get("/").status, 200);
    }
    assert_eq!(sidecar.admin_json("/api/v1/limits")["rate"][0]["keys"], 2);
}

#[test]
fn a_noisy_client_does_not_exhaust_the_bucket_of_all_clients() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &local_rate_limit_section(&format!("{RULE_FOR_ALL}, {RULE_PER_KEY}")),
    ));
    let mut client = sidecar.client();
    for _ in 0..100 {
        send_with_key(&mut client, "noisy");
    }
    assert_eq!(
        [
            send_with_key(&mut client, "quiet").0,
            send_with_key(&mut client, "quiet").0
        ],
        [200, 200],
        "the bucket of a key is checked first, although its rule is written last"
    );
    assert_eq!(
        send_with_key(&mut client, "quiet"),
        (429, "rate_limited:all".to_owned())
    );
}

#[test]
fn keys_are_bounded_and_overflowing_keys_share_one_bucket() {
    let backend = ScriptedBackend::healthy();
    let sections = rate_limit_section_with_fields("maxKeys: 16, ", RULE_PER_KEY);
    let sidecar = Sidecar::start(&policy(&[backend.address], &sections));
    let mut client = sidecar.client();
    let admitted = (0..500)
        .filter(|key| send_with_key(&mut client, &format!("k{key}")).0 == 200)
        .count();
    let usage = &sidecar.admin_json("/api/v1/limits")["rate"][0];
    let (keys, overflowed) = (
        usage["keys"].as_u64().unwrap(),
        usage["overflowed"].as_u64().unwrap(),
    );
    assert!(keys <= 16, "{keys}");
    assert_eq!(overflowed, 500 - keys);
    // All overflowing keys share a bucket with three tokens.
    assert_eq!(
        admitted as u64,
        keys + 3,
        "a key over the maximum has no bucket of its own: {admitted} are admitted with {keys} keys"
    );
}

#[test]
fn a_rule_selects_by_address_and_header_value_and_charges_its_cost() {
    let backend = ScriptedBackend::healthy();
    let rules = "{name: loopback, \
                 clientSelectors: [{sourceCIDR: {value: 127.0.0.0/8, type: Distinct}, \
                 headers: [{name: x-plan, value: free}]}], \
                 limit: {requests: 1, unit: Hour, burst: 4}, \
                 cost: {request: {from: Number, number: 2}}}, \
                 {name: elsewhere, clientSelectors: [{sourceCIDR: {value: 10.0.0.0/8}}], \
                 limit: {requests: 1, unit: Hour}}";
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &local_rate_limit_section(rules),
    ));
    let mut client = sidecar.client();
    let mut status_for_plan = |plan: &str| {
        client
            .send(format!(
                "GET / HTTP/1.1\r\nhost: a\r\nx-plan: {plan}\r\n\r\n"
            ))
            .read_response()
            .status
    };
    assert_eq!(
        ["free", "free", "free", "paid", "paid"].map(&mut status_for_plan),
        [200, 200, 429, 200, 200]
    );
}

#[test]
fn a_rate_limit_in_shadow_mode_counts_but_does_not_reject() {
    let backend = ScriptedBackend::healthy();
    let rule = "{name: all, mode: Shadow, limit: {requests: 1, unit: Minute, burst: 5}}";
    let sidecar = Sidecar::start(&policy(&[backend.address], &local_rate_limit_section(rule)));
    let mut client = sidecar.client();
    for _ in 0..8 {
        assert_eq!(client.get("/").status, 200);
    }
    assert_eq!(
        sidecar.metric(r#"outrigger_shadow_refusals_total{route="in",reason="rate_limited"}"#),
        3.0
    );
}

#[test]
fn a_rule_selects_by_path_and_method() {
    let backend = ScriptedBackend::healthy();
    let rules = "{name: writes, \
                 clientSelectors: [{path: {type: PathPrefix, value: /orders}, \
                 methods: [{value: POST}, {value: PUT}]}], \
                 limit: {requests: 1, unit: Hour}}";
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &local_rate_limit_section(rules),
    ));
    let mut client = sidecar.client();
    let mut status_for_request_line = |line: &str| {
        client
            .send(format!(
                "{line} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"
            ))
            .read_response()
            .status
    };
    let statuses = [
        "POST /orders/1?a=b",
        "PUT /orders",
        "GET /orders",
        "POST /ordersold",
        "POST /orders",
    ]
    .map(&mut status_for_request_line);
    assert_eq!(statuses, [200, 429, 200, 200, 429]);
}

#[test]
fn the_client_ip_comes_from_x_forwarded_for_only_behind_trusted_proxies() {
    let backend = ScriptedBackend::healthy();
    let rules = "{name: each, \
                 clientSelectors: [{sourceCIDR: {value: 0.0.0.0/0, type: Distinct}}], \
                 limit: {requests: 1, unit: Hour}}";
    let policy = PolicyBuilder::to_backend(&backend).sections(&local_rate_limit_section(rules));
    let status_for_address = |sidecar: &Sidecar, address: &str| {
        sidecar
            .client()
            .send(format!(
                "GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: {address}\r\n\r\n"
            ))
            .read_response()
            .status
    };
    let direct = Sidecar::start(&policy.build());
    assert_eq!(
        [
            status_for_address(&direct, "1.1.1.1"),
            status_for_address(&direct, "2.2.2.2")
        ],
        [200, 429],
        "the header of an untrusted client does not select a bucket"
    );
    let policy = policy.listener_fields(
        "clientIPDetection: {xForwardedFor: {trustedCIDRs: [127.0.0.0/8, 10.0.0.0/8]}}",
    );
    let behind_proxy = Sidecar::start(&policy.build());
    let statuses = [
        "1.1.1.1",
        "2.2.2.2",
        "1.1.1.1",
        "6.6.6.6, 2.2.2.2, 10.0.0.3",
    ]
    .map(|address| status_for_address(&behind_proxy, address));
    assert_eq!(statuses, [200, 200, 429, 429]);
}

fn rule_with_response_cost(burst: u32) -> String {
    format!(
        "{{name: cost, limit: {{requests: 1, unit: Hour, burst: {burst}}}, \
         cost: {{request: {{from: Number, number: 0}}, \
         response: {{from: Header, header: X-Cost}}}}}}"
    )
}

#[test]
fn the_cost_in_a_response_is_charged_and_may_put_the_bucket_into_debt() {
    let backend = ScriptedBackend::responding_with(|request| {
        let cost = request.header("x-requested-cost").unwrap_or_default();
        response_with_header("x-cost", cost)
    });
    let rules = rule_with_response_cost(10);
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &local_rate_limit_section(&rules),
    ));
    let mut client = sidecar.client();
    let mut send_with_response_cost = |cost: &str| {
        let response = client
            .send(format!(
                "GET / HTTP/1.1\r\nhost: a\r\nx-requested-cost: {cost}\r\n\r\n"
            ))
            .read_response();
        (
            response.status,
            response.header("ratelimit").unwrap_or_default().to_owned(),
        )
    };
    assert_eq!(
        send_with_response_cost("4"),
        (200, r#""cost";r=10;t=3600"#.to_owned())
    );
    assert_eq!(
        send_with_response_cost("no number"),
        (200, r#""cost";r=6;t=3600"#.to_owned())
    );
    assert_eq!(
        send_with_response_cost("18446744073709551616").1,
        r#""cost";r=6;t=3600"#,
        "an invalid cost is not charged but counted"
    );
    assert_eq!(
        send_with_response_cost("8").0,
        200,
        "a cost over the remaining tokens is known only after the response"
    );
    let (status, rate_limit_header) = send_with_response_cost("0");
    assert_eq!(status, 429);
    assert!(
        rate_limit_header.starts_with(r#""cost";r=0;t=7"#),
        "the bucket is two hours in debt: {rate_limit_header}"
    );
    assert_eq!(
        sidecar.admin_json("/api/v1/limits")["rate"][0]["unreadable_costs"],
        2
    );
}

#[test]
fn the_counters_of_a_rate_limit_continue_when_its_rule_changes() {
    let backend = ScriptedBackend::responding_with(|_| response_with_header("x-cost", "none"));
    let policy_with_burst = |burst: u32| {
        let rule = rule_with_response_cost(burst);
        policy(&[backend.address], &local_rate_limit_section(&rule))
    };
    let sidecar = Sidecar::start(&policy_with_burst(10));
    let counter = r#"outrigger_rate_limit_unreadable_costs_total{rule="in/cost"}"#;
    sidecar.get("/");
    assert_eq!(sidecar.metric(counter), 1.0);
    sidecar.get("/");
    // The count that was not scraped before the change is retained.
    sidecar.reload(&policy_with_burst(20));
    sidecar.get("/");
    assert_eq!(sidecar.metric(counter), 3.0);
    assert_eq!(
        sidecar.metric(counter),
        3.0,
        "a scrape does not change the counter"
    );
    let text = sidecar.call_admin("GET", "/metrics").text();
    assert!(text.contains("# TYPE outrigger_rate_limit_unreadable_costs_total counter"));
}

#[test]
fn queued_requests_are_paced_and_those_over_max_wait_are_rejected_at_once() {
    let backend = ScriptedBackend::healthy();
    let rules = "{name: pace, limit: {requests: 20, unit: Second, burst: 1}, \
                 queue: {maxWait: 120ms}}";
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &local_rate_limit_section(rules),
    ));
    let start = std::time::Instant::now();
    let request_threads: Vec<_> = (0..6)
        .map(|_| sidecar.client())
        .map(|mut client| std::thread::spawn(move || client.get("/").status))
        .collect();
    let mut statuses: Vec<_> = request_threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect();
    let elapsed = start.elapsed();
    statuses.sort_unstable();
    let admitted = statuses.iter().filter(|status| **status == 200).count();
    // One request is admitted at once, and one each 50 ms until the wait exceeds 120 ms. More are
    // admitted if the threads start slowly.
    assert!(
        admitted >= 3 && statuses.iter().all(|status| matches!(status, 200 | 429)),
        "{statuses:?}"
    );
    assert!(
        elapsed >= std::time::Duration::from_millis(50 * (admitted as u64 - 1)),
        "{admitted} in {elapsed:?}"
    );
    let mut client = sidecar.client();
    eventually("a request is queued", || {
        client.get("/").status == 200
            && sidecar.admin_json("/api/v1/limits")["rate"][0]["delayed"]
                .as_u64()
                .unwrap()
                >= 1
    });
}

#[test]
fn a_warming_rate_limit_starts_at_its_cold_rate() {
    let backend = ScriptedBackend::healthy();
    let rules = "{name: cold, limit: {requests: 1, unit: Hour, burst: 9}, \
                 warmUp: {window: 1h, coldFactor: 3}}";
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &local_rate_limit_section(rules),
    ));
    let mut client = sidecar.client();
    assert_eq!((0..9).filter(|_| client.get("/").status == 200).count(), 3);
}

const RULES_IN_HEADERS: &str = "{name: wide, limit: {requests: 100, unit: Second}}, \
                                {name: narrow, limit: {requests: 2, unit: Minute}}, \
                                {name: silent, mode: Shadow, limit: {requests: 1, unit: Hour}}";

#[test]
fn every_response_reports_the_nearest_rate_limit() {
    let backend =
        ScriptedBackend::responding_with(|_| response_with_header("ratelimit", r#""app";r=7"#));
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &local_rate_limit_section(RULES_IN_HEADERS),
    ));
    let (first, second) = (sidecar.client().get("/"), sidecar.client().get("/"));
    assert_eq!(
        first.header("ratelimit-policy"),
        Some(r#""narrow";q=2;w=60"#)
    );
    assert_eq!(
        first.headers("ratelimit"),
        [r#""app";r=7"#, r#""narrow";r=1;t=30"#],
        "the header of the app is retained"
    );
    assert_eq!(
        second.headers("ratelimit"),
        [r#""app";r=7"#, r#""narrow";r=0;t=30"#]
    );
}

#[test]
fn rate_limit_headers_have_the_configured_format_or_are_off() {
    let backend = ScriptedBackend::healthy();
    let response_with_format = |format: &str| {
        let fields = format!("rateLimitHeaders: {format}, ");
        let sections = rate_limit_section_with_fields(&fields, RULES_IN_HEADERS);
        Sidecar::start(&policy(&[backend.address], &sections)).get("/")
    };
    let response = response_with_format("DraftVersion03");
    let header_values = [
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
        "ratelimit",
        "ratelimit-policy",
    ]
    .map(|name| response.header(name));
    assert_eq!(
        header_values,
        [
            Some(r#"2, 2;w=60;name="narrow""#),
            Some("1"),
            Some("30"),
            None,
            None
        ]
    );
    let response = response_with_format("Off");
    assert_eq!(
        [
            response.header("ratelimit"),
            response.header("ratelimit-policy"),
            response.header("x-ratelimit-limit")
        ],
        [None, None, None]
    );
}
