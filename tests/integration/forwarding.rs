//! How requests and responses are forwarded: headers, framing, routes, filters and endpoints.

use crate::support::{
    Client, ScriptedBackend, Sidecar,
    backend::ok_response,
    eventually,
    policy::{PolicyBuilder, policy},
};

#[test]
fn a_forwarded_request_keeps_end_to_end_headers_and_drops_hop_by_hop_headers() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    client.send(
        "GET /a?b=c HTTP/1.1\r\nHost: shop\r\n\
         Connection: keep-alive, x-private, content-length\r\nX-Private: 1\r\n\
         Keep-Alive: timeout=5\r\nTE: gzip\r\nProxy-Connection: x\r\nTrailer: x\r\nUpgrade: h2c\r\n\
         traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\
         X-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 9.9.9.9\r\nX-Retained: yes\r\n\r\n",
    );
    assert_eq!(client.read_response().text(), "hello");
    let forwarded = &backend.requests()[0];
    assert_eq!(forwarded.request_line(), "GET /a?b=c HTTP/1.1");
    for removed in [
        "connection",
        "x-private",
        "keep-alive",
        "te",
        "proxy-connection",
        "upgrade",
    ] {
        assert_eq!(forwarded.header(removed), None, "{removed}");
    }
    let id = forwarded.header("x-request-id").unwrap();
    assert!(
        id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{id}"
    );
    for (name, value) in [
        ("host", "shop"),
        ("x-retained", "yes"),
        ("trailer", "x"),
        ("via", "1.1 outrigger"),
        ("x-forwarded-for", "1.1.1.1, 9.9.9.9, 127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "shop"),
        ("x-outrigger-attempt", "1"),
        (
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
    ] {
        assert_eq!(forwarded.header(name), Some(value), "{name}");
    }
}

#[test]
fn names_and_order_of_fields_stay_as_they_were_sent() {
    let backend = ScriptedBackend::responding_with(|_| {
        "HTTP/1.1 200 OK\r\nX-ONE: 1\r\nSet-Cookie: a\r\ncontent-LENGTH: 2\r\nx-two:2\r\n\
         set-cookie: b\r\nETag: \"7\"\r\n\r\nok"
            .into()
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    client.send(
        "GET /<`> HTTP/1.1\r\nX-B: 1\r\nHOST: shop\r\nAccept:*/*\r\nx-B:  2 \r\n\
         SOAPAction: x\r\n\r\n",
    );
    let response = client.read_response();
    let has_lines = |head: &str, lines: &str| head.contains(&lines.replace('\n', "\r\n"));
    let forwarded = &backend.requests()[0].head;
    let lines = "X-B: 1\nHOST: shop\nAccept: */*\nx-B: 2\nSOAPAction: x\n";
    assert!(has_lines(forwarded, lines), "{forwarded}");
    assert!(
        forwarded.starts_with("GET /<`> HTTP/1.1\r\n"),
        "{forwarded}"
    );
    let lines =
        "X-ONE: 1\nSet-Cookie: a\ncontent-LENGTH: 2\nx-two: 2\nset-cookie: b\nETag: \"7\"\n";
    assert!(has_lines(&response.head, lines), "{}", response.head);
}

#[test]
fn the_request_id_of_the_client_is_forwarded() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    sidecar
        .client()
        .send("GET / HTTP/1.1\r\nhost: a\r\nx-request-id: mine\r\n\r\n")
        .read_response();
    assert_eq!(backend.requests()[0].header("x-request-id"), Some("mine"));
    assert_eq!(sidecar.access_log_lines(1)[0]["request_id"], "mine");
}

#[test]
fn a_response_of_the_app_cannot_claim_to_be_from_the_sidecar() {
    let backend = ScriptedBackend::responding_with(|_| {
        "HTTP/1.1 503 No\r\nx-outrigger-reason: spoofed\r\nconnection: x-secret\r\n\
         x-secret: 1\r\nkeep-alive: timeout=9\r\ncontent-length: 2\r\n\r\nno"
            .into()
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let response = sidecar.get("/");
    assert_eq!(
        (response.status, response.text().as_str(), response.reason()),
        (503, "no", "")
    );
    assert_eq!(
        (
            response.header("proxy-status"),
            response.header("x-secret"),
            response.header("keep-alive")
        ),
        (None, None, None)
    );
    assert_eq!(response.header("via"), Some("1.1 outrigger"));
}

#[test]
fn repeated_headers_keep_their_order_and_the_reason_phrase_is_forwarded() {
    let backend = ScriptedBackend::responding_with(|_| {
        "HTTP/1.1 418 Short And Stout\r\nSet-Cookie: a=1\r\nX-Other: x\r\nSet-Cookie: b=2\r\n\
         content-length: 0\r\n\r\n"
            .into()
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    let (_, head) = client
        .send("GET / HTTP/1.1\r\nhost: a\r\nAccept: a\r\nx-between: 1\r\naccept: b\r\n\r\n")
        .read_head()
        .unwrap();
    assert!(
        head.starts_with("HTTP/1.1 418 Short And Stout\r\n"),
        "{head}"
    );
    let cookies: Vec<&str> = head
        .lines()
        .filter_map(|line| line.split_once(": "))
        .filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie"))
        .map(|(_, value)| value)
        .collect();
    assert_eq!(cookies, ["a=1", "b=2"]);
    let forwarded = &backend.requests()[0].head;
    let accepted: Vec<&str> = forwarded
        .lines()
        .filter_map(|line| line.split_once(": "))
        .filter(|(name, _)| name.eq_ignore_ascii_case("accept"))
        .map(|(_, value)| value)
        .collect();
    assert_eq!(accepted, ["a", "b"]);
}

#[test]
fn connections_are_kept_alive_on_both_sides() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    for _ in 0..50 {
        assert_eq!(client.get("/").status, 200);
    }
    assert_eq!((backend.requests().len(), backend.connections()), (50, 1));
}

#[test]
fn pipelined_requests_receive_responses_in_order() {
    let backend = ScriptedBackend::responding_with(|request| ok_response(request.request_line()));
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    client.send(
        "GET /1 HTTP/1.1\r\nhost: a\r\n\r\n\
         POST /2 HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc\
         GET /3 HTTP/1.1\r\nhost: a\r\n\r\n",
    );
    let lines: Vec<String> = (0..3).map(|_| client.read_response().text()).collect();
    assert_eq!(
        lines,
        ["GET /1 HTTP/1.1", "POST /2 HTTP/1.1", "GET /3 HTTP/1.1"]
    );
}

#[test]
fn an_http_1_0_client_receives_a_response_delimited_by_close() {
    let backend = ScriptedBackend::responding_with(|_| {
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".into()
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let response = sidecar
        .client()
        .send("GET / HTTP/1.0\r\n\r\n")
        .read_response();
    assert_eq!(
        (
            response.text().as_str(),
            response.header("transfer-encoding"),
            response.header("connection")
        ),
        ("hello", None, Some("close"))
    );
    let forwarded = &backend.requests()[0];
    assert_eq!(
        (forwarded.request_line(), forwarded.header("host")),
        ("GET / HTTP/1.1", Some(backend.address.to_string().as_str()))
    );
}

#[test]
fn a_close_delimited_response_is_forwarded_chunked() {
    let backend = ScriptedBackend::start(|mut connection| {
        connection.read_request();
        connection.send("HTTP/1.1 200 OK\r\n\r\nuntil the end");
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let response = sidecar.get("/");
    assert_eq!(
        (
            response.text().as_str(),
            response.is_complete,
            response.header("transfer-encoding")
        ),
        ("until the end", true, Some("chunked"))
    );
}

#[test]
fn head_204_and_304_responses_have_no_body_and_keep_the_connection() {
    let backend = ScriptedBackend::responding_with(|request| {
        match request.request_line().split(' ').next() {
            Some("HEAD") => "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n".into(),
            Some("DELETE") => "HTTP/1.1 204 No Content\r\n\r\n".into(),
            Some("PUT") => "HTTP/1.1 304 Not Modified\r\ncontent-length: 10\r\n\r\n".into(),
            _ => ok_response("x"),
        }
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    client.send("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n");
    let (status, head) = client.read_head().unwrap();
    let head = client.read_body(status, head, false);
    assert_eq!(
        (head.status, head.header("content-length")),
        (200, Some("1000"))
    );
    assert_eq!(
        client
            .send("DELETE / HTTP/1.1\r\nhost: a\r\n\r\n")
            .read_response()
            .status,
        204
    );
    assert_eq!(
        client
            .send("PUT / HTTP/1.1\r\nhost: a\r\n\r\n")
            .read_response()
            .status,
        304
    );
    assert_eq!(client.get("/").text(), "x");
    assert_eq!(backend.connections(), 1);
}

#[test]
fn interim_responses_are_forwarded_and_a_100_releases_the_request_body() {
    let backend = ScriptedBackend::start(|mut connection| {
        let head = connection.read_head().unwrap();
        assert!(
            head.to_lowercase().contains("expect: 100-continue"),
            "{head}"
        );
        connection.send(
            "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n",
        );
        assert_eq!(connection.read_exact(4).unwrap(), b"body");
        connection.send(ok_response("done"));
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    client.send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n");
    let (hints, head) = client.read_head().unwrap();
    assert_eq!((hints, head.contains("</a.css>")), (103, true));
    assert_eq!(client.read_head().unwrap().0, 100);
    assert_eq!(client.send("body").read_response().text(), "done");
}

/// The names of routes and backends, and the fields that state what the routes match.
const ROUTE_MATCHES: [(&str, &str); 5] = [
    (
        "exact",
        "hostnames: [pay.shop], matches: [{path: {type: Exact, value: /v1/a}}]",
    ),
    (
        "prefix",
        "hostnames: [pay.shop], matches: [{path: {value: /v1}}]",
    ),
    (
        "regex",
        "hostnames: [\"*.shop\"], \
         matches: [{path: {type: RegularExpression, value: \"/items/[0-9]+\"}}]",
    ),
    (
        "method",
        "hostnames: [pay.shop], matches: [{path: {value: /v1}, method: DELETE}]",
    ),
    (
        "header",
        "hostnames: [pay.shop], \
         matches: [{path: {value: /v1}, headers: [{name: X-Team, value: red}]}]",
    ),
];

/// Returns a policy with a route to `default` that matches all requests, and `ROUTE_MATCHES`.
fn policy_with_routes(default: &ScriptedBackend, backends: [&ScriptedBackend; 5]) -> String {
    ROUTE_MATCHES
        .iter()
        .zip(backends)
        .fold(
            PolicyBuilder::to_backend(default),
            |policy, ((name, matches), backend)| {
                let fields =
                    format!("listeners: [inbound], {matches}, backendRefs: [{{name: {name}}}]");
                policy.scripted_backend(name, backend).route(name, &fields)
            },
        )
        .build()
}

#[test]
fn routes_match_by_host_path_method_and_header() {
    let [plain, exact, prefix, regex, method, header] =
        ["plain", "exact", "prefix", "regex", "method", "header"]
            .map(|name| ScriptedBackend::responding_with(move |_| ok_response(name)));
    let sidecar = Sidecar::start(&policy_with_routes(
        &plain,
        [&exact, &prefix, &regex, &method, &header],
    ));
    let send = |request: &str| {
        sidecar
            .client()
            .send(format!("{request}\r\n\r\n"))
            .read_response()
            .text()
    };
    let table = [
        ("GET / HTTP/1.1\r\nhost: other", "plain"),
        ("GET /v1/a HTTP/1.1\r\nhost: PAY.shop:8080", "exact"),
        ("GET /v1/a/b?c HTTP/1.1\r\nhost: pay.shop", "prefix"),
        ("GET /v10 HTTP/1.1\r\nhost: pay.shop", "plain"),
        ("GET /items/42 HTTP/1.1\r\nhost: eu.shop", "regex"),
        ("GET /items/x HTTP/1.1\r\nhost: eu.shop", "plain"),
        ("DELETE /v1/b HTTP/1.1\r\nhost: pay.shop", "method"),
        (
            "GET /v1/b HTTP/1.1\r\nhost: pay.shop\r\nx-team: red",
            "header",
        ),
        (
            "GET http://pay.shop/v1/a HTTP/1.1\r\nhost: pay.shop",
            "exact",
        ),
    ];
    for (request, expected) in table {
        assert_eq!(send(request), expected, "{request}");
    }
    assert_eq!(
        exact.requests()[1].request_line(),
        "GET /v1/a HTTP/1.1",
        "the absolute form is forwarded in origin form"
    );
}

#[test]
fn a_request_without_a_matching_route_receives_404_no_route() {
    let backend = ScriptedBackend::healthy();
    let policy = PolicyBuilder::to_backend(&backend)
        .route_fields("hostnames: [shop]")
        .build();
    let sidecar = Sidecar::start(&policy);
    let response = sidecar.get("/");
    assert_eq!(
        (
            response.status,
            response.reason(),
            response.header("content-type")
        ),
        (404, "no_route", Some("application/problem+json"))
    );
    assert_eq!(
        response.header("proxy-status"),
        Some("outrigger; error=destination_not_found; details=\"no_route\"")
    );
    let problem: serde_json::Value = serde_json::from_str(&response.text()).unwrap();
    assert_eq!(
        (problem["status"].as_u64(), problem["reason"].as_str()),
        (Some(404), Some("no_route"))
    );
    assert_eq!(sidecar.access_log_lines(1)[0]["reason"], "no_route");
}

/// Returns a policy that modifies requests under `/api` and redirects requests under `/old`.
fn policy_with_filters(backend: &ScriptedBackend) -> String {
    PolicyBuilder::to_backend(backend)
        .route_fields("matches: [{path: {value: /api}}]")
        .route_fields(
            "filters: [\
             {type: RequestHeaderModifier, requestHeaderModifier: {remove: [cookie], \
             set: [{name: x-env, value: prod}], add: [{name: accept, value: text/html}]}}, \
             {type: ResponseHeaderModifier, responseHeaderModifier: {remove: [server], \
             set: [{name: x-old, value: \"2\"}]}}, \
             {type: URLRewrite, urlRewrite: {hostname: app.internal, \
             path: {type: ReplacePrefixMatch, replacePrefixMatch: /v2}}}]",
        )
        .route(
            "moved",
            "listeners: [inbound], matches: [{path: {value: /old}}], \
             filters: [{type: RequestRedirect, requestRedirect: {scheme: https, \
             hostname: new.shop, statusCode: 308, \
             path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}]",
        )
        .build()
}

#[test]
fn filters_change_headers_host_and_path_or_redirect() {
    let backend = ScriptedBackend::responding_with(|_| {
        "HTTP/1.1 200 OK\r\nserver: app\r\nx-old: 1\r\ncontent-length: 0\r\n\r\n".into()
    });
    let sidecar = Sidecar::start(&policy_with_filters(&backend));
    let response = sidecar
        .client()
        .send(
            "GET /api/items?x=1 HTTP/1.1\r\nhost: shop\r\ncookie: secret\r\nx-env: test\r\n\
             accept: a/b\r\n\r\n",
        )
        .read_response();
    assert_eq!(
        (response.header("server"), response.header("x-old")),
        (None, Some("2"))
    );
    let forwarded = &backend.requests()[0];
    assert_eq!(
        (
            forwarded.request_line(),
            forwarded.header("host"),
            forwarded.header("cookie"),
            forwarded.header("x-env")
        ),
        (
            "GET /v2/items?x=1 HTTP/1.1",
            Some("app.internal"),
            None,
            Some("prod")
        )
    );
    assert_eq!(forwarded.head.matches("accept:").count(), 2);
    assert_eq!(forwarded.header("x-forwarded-host"), Some("shop"));
    let moved = sidecar.get("/old/a?b");
    assert_eq!(
        (moved.status, moved.header("location"), moved.reason()),
        (308, Some("https://new.shop/new/a?b"), "redirect")
    );
}

#[test]
fn weights_split_requests_over_backends() {
    let (heavy, light, none) = (
        ScriptedBackend::healthy(),
        ScriptedBackend::healthy(),
        ScriptedBackend::healthy(),
    );
    let policy = PolicyBuilder::to_backend(&heavy)
        .scripted_backend("light", &light)
        .scripted_backend("none", &none)
        .route_backends(
            "{name: app, weight: 90}, {name: light, weight: 10}, {name: none, weight: 0}",
        )
        .build();
    let sidecar = Sidecar::start(&policy);
    let mut client = sidecar.client();
    for _ in 0..1_000 {
        client.get("/");
    }
    // The expected count is 100 with a standard deviation of 9.5. Six deviations are tolerated.
    assert!(
        (43..=157).contains(&light.requests().len()),
        "{}",
        light.requests().len()
    );
    assert_eq!(
        (
            heavy.requests().len() + light.requests().len(),
            none.requests().len()
        ),
        (1_000, 0)
    );
}

#[test]
fn round_robin_alternates_between_endpoints() {
    let backends = [ScriptedBackend::healthy(), ScriptedBackend::healthy()];
    let policy = PolicyBuilder::new(&[backends[0].address, backends[1].address])
        .backend_fields("loadBalancer: {type: RoundRobin}")
        .build();
    let sidecar = Sidecar::start(&policy);
    for _ in 0..10 {
        sidecar.get("/");
    }
    assert_eq!(
        [backends[0].requests().len(), backends[1].requests().len()],
        [5, 5]
    );
}

#[test]
fn least_request_avoids_busy_endpoints() {
    let busy = ScriptedBackend::start(|mut connection| {
        connection.read_request();
        connection.wait_for_close();
    });
    let idle = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(&[busy.address, idle.address], ""));
    let mut waiting_clients: Vec<Client> = Vec::new();
    while busy.requests().is_empty() {
        let mut client = sidecar.client();
        client.send("GET /hold HTTP/1.1\r\nhost: a\r\n\r\n");
        waiting_clients.push(client);
        eventually("an endpoint receives the request", || {
            busy.requests().len() + idle.requests().len() == waiting_clients.len()
        });
    }
    let held = busy.requests().len();
    for _ in 0..50 {
        eventually("only the held requests are in flight", || {
            sidecar.in_flight() == held
        });
        assert_eq!(sidecar.get("/").status, 200);
    }
    assert_eq!(
        busy.requests().len(),
        held,
        "the endpoint with fewer requests in flight is selected"
    );
}

#[test]
fn an_outbound_request_carries_no_x_forwarded_for() {
    let backend = ScriptedBackend::responding_with(|_| {
        "HTTP/1.1 200 OK\r\nx-outrigger-reason: rate_limited:peer\r\ncontent-length: 1\r\n\r\nx"
            .into()
    });
    let sidecar = Sidecar::start(&PolicyBuilder::to_backend(&backend).outbound().build());
    let response = Client::connect(sidecar.address("outbound")).get("/");
    assert_eq!(backend.requests()[0].header("x-forwarded-for"), None);
    assert_eq!(
        response.reason(),
        "rate_limited:peer",
        "an outbound listener forwards the reason of the sidecar at the endpoint"
    );
}

#[test]
fn a_forwarding_loop_is_rejected() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let via = vec!["1.1 outrigger"; 16].join(", ");
    let response = sidecar
        .client()
        .send(format!("GET / HTTP/1.1\r\nhost: a\r\nvia: {via}\r\n\r\n"))
        .read_response();
    assert_eq!((response.status, response.reason()), (508, "loop_detected"));
    assert_eq!(backend.requests().len(), 0);
}

#[test]
fn each_request_writes_one_access_log_line() {
    let backend = ScriptedBackend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    sidecar
        .client()
        .send("POST /a?secret=1 HTTP/1.1\r\nhost: shop\r\ncontent-length: 3\r\n\r\nabc")
        .read_response();
    let line = &sidecar.access_log_lines(1)[0];
    for (key, value) in [
        ("listener", "inbound"),
        ("route", "in"),
        ("backend", "app"),
        ("method", "POST"),
        ("host", "shop"),
        ("path", "/a"),
        ("reason", ""),
        ("client", "127.0.0.1"),
    ] {
        assert_eq!(line[key], value, "{key}");
    }
    assert_eq!(line["endpoint"], backend.address.to_string());
    for (key, value) in [
        ("status", 200),
        ("attempts", 1),
        ("bytes_received", 3),
        ("bytes_sent", 5),
    ] {
        assert_eq!(line[key], value, "{key}");
    }
    assert_eq!(
        sidecar.metric(r#"outrigger_requests_total{route="in",direction="inbound",status="2xx"}"#),
        1.0
    );
}
