//! Rate limits of one instance on the wire.

use crate::support::{
    Client, ScriptedBackend, Sidecar,
    backend::{ok_response, response},
    eventually,
    policy::policy,
};

fn local_rate_limit_section(rules: &str) -> String {
    format!("  defaults:\n    rateLimit:\n      local:\n        rules:\n{rules}")
}

const RULE_PER_KEY: &str = "          - {name: per-key, clientSelectors: [{headers: [{name: x-key, type: Distinct}]}], limit: {requests: 1, unit: Minute, burst: 3}}\n";
const RULE_FOR_ALL: &str =
    "          - {name: all, limit: {requests: 1, unit: Minute, burst: 5}}\n";

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
    let refusal = client.get("/");
    assert_eq!(
        (refusal.status, refusal.reason()),
        (429, "rate_limited:all")
    );
    let wait: u64 = refusal.header("retry-after").unwrap().parse().unwrap();
    assert!(
        (58..=60).contains(&wait),
        "a token comes back each minute: {wait}"
    );
    assert_eq!(refusal.header("ratelimit-policy"), Some("\"all\";q=1;w=60"));
    assert_eq!(
        refusal.header("ratelimit"),
        Some(format!("\"all\";r=0;t={wait}").as_str())
    );
    assert_eq!(client.get("/").status, 429, "the connection goes on");
    assert_eq!(backend.requests().len(), 5);
    eventually("both are counted", || {
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
        &local_rate_limit_section(&format!("{RULE_FOR_ALL}{RULE_PER_KEY}")),
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
        "its own bucket is asked first, although it is written last"
    );
    assert_eq!(
        send_with_key(&mut client, "quiet"),
        (429, "rate_limited:all".to_owned())
    );
}

#[test]
fn keys_are_bounded_and_overflowing_keys_share_one_bucket() {
    let backend = ScriptedBackend::healthy();
    let text = local_rate_limit_section(RULE_PER_KEY)
        .replace("rateLimit:\n", "rateLimit:\n      maxKeys: 16\n");
    let sidecar = Sidecar::start(&policy(&[backend.address], &text));
    let mut client = sidecar.client();
    let passed = (0..500)
        .filter(|key| send_with_key(&mut client, &format!("k{key}")).0 == 200)
        .count();
    let usage = &sidecar.admin_json("/api/v1/limits")["rate"][0];
    let (keys, overflowed) = (
        usage["keys"].as_u64().unwrap(),
        usage["overflowed"].as_u64().unwrap(),
    );
    assert!(keys <= 16, "{keys}");
    assert_eq!(overflowed, 500 - keys);
    // The overflow bucket has three tokens for all of them together.
    assert_eq!(
        passed as u64,
        keys + 3,
        "{passed} of {keys} keys passed: a new key is no way to a new bucket"
    );
}

#[test]
fn a_rule_selects_by_address_and_header_value_and_charges_its_cost() {
    let backend = ScriptedBackend::healthy();
    let rules = "          - {name: loopback, clientSelectors: [{sourceCIDR: {value: 127.0.0.0/8, type: Distinct}, headers: [{name: x-plan, value: free}]}], limit: {requests: 1, unit: Hour, burst: 4}, cost: {request: {from: Number, number: 2}}}\n          \
                 - {name: elsewhere, clientSelectors: [{sourceCIDR: {value: 10.0.0.0/8}}], limit: {requests: 1, unit: Hour}}\n";
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
fn a_shadow_limit_counts_and_rejects_nothing() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &local_rate_limit_section(&RULE_FOR_ALL.replace("name: all,", "name: all, mode: Shadow,")),
    ));
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
    let rules = "          - {name: writes, clientSelectors: [{path: {type: PathPrefix, value: /orders}, methods: [{value: POST}, {value: PUT}]}], limit: {requests: 1, unit: Hour}}\n";
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
    let rules = "          - {name: each, clientSelectors: [{sourceCIDR: {value: 0.0.0.0/0, type: Distinct}}], limit: {requests: 1, unit: Hour}}\n";
    let text = policy(&[backend.address], &local_rate_limit_section(rules));
    let status_from = |sidecar: &Sidecar, from: &str| {
        sidecar
            .client()
            .send(format!(
                "GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: {from}\r\n\r\n"
            ))
            .read_response()
            .status
    };
    let unaware = Sidecar::start(&text);
    assert_eq!(
        [
            status_from(&unaware, "1.1.1.1"),
            status_from(&unaware, "2.2.2.2")
        ],
        [200, 429],
        "a header is no way to a new bucket"
    );
    let aware = Sidecar::start(&text.replace("direction: Inbound,", "direction: Inbound, clientIPDetection: {xForwardedFor: {trustedCIDRs: [127.0.0.0/8, 10.0.0.0/8]}},"));
    let statuses = [
        "1.1.1.1",
        "2.2.2.2",
        "1.1.1.1",
        "6.6.6.6, 2.2.2.2, 10.0.0.3",
    ]
    .map(|from| status_from(&aware, from));
    assert_eq!(statuses, [200, 200, 429, 429]);
}

#[test]
fn the_cost_in_a_response_is_charged_and_may_put_the_bucket_into_debt() {
    let backend = ScriptedBackend::responding_with(|seen| {
        ok_response("x").replace(
            "\r\n\r\n",
            &format!(
                "\r\nx-cost: {}\r\n\r\n",
                seen.header("x-ask").unwrap_or_default()
            ),
        )
    });
    let rules = "          - {name: worth, limit: {requests: 1, unit: Hour, burst: 10}, cost: {request: {from: Number, number: 0}, response: {from: Header, header: X-Cost}}}\n";
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &local_rate_limit_section(rules),
    ));
    let mut client = sidecar.client();
    let mut send_with_response_cost = |cost: &str| {
        let response = client
            .send(format!(
                "GET / HTTP/1.1\r\nhost: a\r\nx-ask: {cost}\r\n\r\n"
            ))
            .read_response();
        (
            response.status,
            response.header("ratelimit").unwrap_or_default().to_owned(),
        )
    };
    assert_eq!(
        send_with_response_cost("4"),
        (200, r#""worth";r=10;t=3600"#.to_owned())
    );
    assert_eq!(
        send_with_response_cost("no number"),
        (200, r#""worth";r=6;t=3600"#.to_owned())
    );
    assert_eq!(
        send_with_response_cost("18446744073709551616").1,
        r#""worth";r=6;t=3600"#,
        "absurd costs are worth nothing, and counted"
    );
    assert_eq!(
        send_with_response_cost("8").0,
        200,
        "more than there is, because nobody knew before"
    );
    let (status, rate_limit_header) = send_with_response_cost("0");
    assert_eq!(status, 429);
    assert!(
        rate_limit_header.starts_with(r#""worth";r=0;t=7"#),
        "two hours of debt: {rate_limit_header}"
    );
    assert_eq!(
        sidecar.admin_json("/api/v1/limits")["rate"][0]["unreadable_costs"],
        2
    );
}

#[test]
fn the_counters_of_a_rate_limit_continue_when_its_rule_changes() {
    let backend = ScriptedBackend::responding_with(|_| {
        ok_response("x").replace("\r\n\r\n", "\r\nx-cost: none\r\n\r\n")
    });
    let with_burst = |burst: u32| {
        let cost =
            "cost: {request: {from: Number, number: 0}, response: {from: Header, header: X-Cost}}";
        let rule =
            format!("{{name: worth, limit: {{requests: 1, unit: Hour, burst: {burst}}}, {cost}}}");
        policy(
            &[backend.address],
            &local_rate_limit_section(&format!("          - {rule}\n")),
        )
    };
    let sidecar = Sidecar::start(&with_burst(10));
    let counter = r#"outrigger_rate_limit_unreadable_costs_total{rule="in/worth"}"#;
    sidecar.get("/");
    assert_eq!(sidecar.metric(counter), 1.0);
    sidecar.get("/");
    // Not scraped before the change: the count must not be lost.
    sidecar.reload(&with_burst(20));
    sidecar.get("/");
    assert_eq!(sidecar.metric(counter), 3.0);
    assert_eq!(
        sidecar.metric(counter),
        3.0,
        "a scrape counts nothing twice"
    );
    let text = sidecar.call_admin("GET", "/metrics").text();
    assert!(text.contains("# TYPE outrigger_rate_limit_unreadable_costs_total counter"));
}

#[test]
fn queued_requests_are_paced_and_those_over_max_wait_are_rejected_at_once() {
    let backend = ScriptedBackend::healthy();
    let rules = "          - {name: pace, limit: {requests: 20, unit: Second, burst: 1}, queue: {maxWait: 120ms}}\n";
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &local_rate_limit_section(rules),
    ));
    let began = std::time::Instant::now();
    let request_threads: Vec<_> = (0..6)
        .map(|_| sidecar.client())
        .map(|mut client| std::thread::spawn(move || client.get("/").status))
        .collect();
    let mut statuses: Vec<_> = request_threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect();
    let elapsed = began.elapsed();
    statuses.sort_unstable();
    let passed = statuses.iter().filter(|status| **status == 200).count();
    // One at once, and one each 50 ms while that is no more than 120 ms away; later ones if starting six threads took long.
    assert!(
        passed >= 3 && statuses.iter().all(|status| matches!(status, 200 | 429)),
        "{statuses:?}"
    );
    assert!(
        elapsed >= std::time::Duration::from_millis(50 * (passed as u64 - 1)),
        "{passed} in {elapsed:?}"
    );
    let mut client = sidecar.client();
    eventually("one waits", || {
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
    let rules = "          - {name: cold, limit: {requests: 1, unit: Hour, burst: 9}, warmUp: {window: 1h, coldFactor: 3}}\n";
    let sidecar = Sidecar::start(&policy(
        &[backend.address],
        &local_rate_limit_section(rules),
    ));
    let mut client = sidecar.client();
    assert_eq!((0..9).filter(|_| client.get("/").status == 200).count(), 3);
}

#[test]
fn every_response_reports_the_nearest_rate_limit() {
    let backend = ScriptedBackend::responding_with(|_| {
        response(200, "x").replace("\r\n\r\n", "\r\nratelimit: \"app\";r=7\r\n\r\n")
    });
    let rules = "          - {name: wide, limit: {requests: 100, unit: Second}}\n          - {name: narrow, limit: {requests: 2, unit: Minute}}\n          - {name: silent, mode: Shadow, limit: {requests: 1, unit: Hour}}\n";
    let text = policy(&[backend.address], &local_rate_limit_section(rules));
    let sidecar = Sidecar::start(&text);
    let (first, second) = (sidecar.client().get("/"), sidecar.client().get("/"));
    assert_eq!(
        first.header("ratelimit-policy"),
        Some(r#""narrow";q=2;w=60"#)
    );
    assert_eq!(
        first.headers("ratelimit"),
        [r#""app";r=7"#, r#""narrow";r=1;t=30"#],
        "both lists are kept"
    );
    assert_eq!(
        second.headers("ratelimit"),
        [r#""app";r=7"#, r#""narrow";r=0;t=30"#]
    );

    let old = Sidecar::start(&text.replace(
        "rateLimit:\n",
        "rateLimit:\n      rateLimitHeaders: DraftVersion03\n",
    ));
    let response = old.client().get("/");
    let header_values = [
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
        "ratelimit-policy",
    ]
    .map(|name| response.header(name));
    assert_eq!(
        header_values,
        [
            Some(r#"2, 2;w=60;name="narrow""#),
            Some("1"),
            Some("30"),
            None
        ]
    );

    let none =
        Sidecar::start(&text.replace("rateLimit:\n", "rateLimit:\n      rateLimitHeaders: Off\n"));
    let response = none.client().get("/");
    assert_eq!(
        (
            response.header("ratelimit-policy"),
            response.header("x-ratelimit-limit")
        ),
        (None, None)
    );
}
