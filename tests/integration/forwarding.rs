//! What goes through, and how it looks on the other side.

use crate::support::{
    Backend, Client, Sidecar,
    backend::{answer, ok},
    sidecar::policy,
};

#[test]
fn a_request_reaches_the_app_with_what_belongs_to_it_and_nothing_of_the_connection() {
    let backend = Backend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    client.send(
        "GET /a?b=c HTTP/1.1\r\nHost: shop\r\nConnection: keep-alive, x-private, content-length\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\nTE: gzip\r\nProxy-Connection: x\r\n\
         Trailer: x\r\nUpgrade: h2c\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 9.9.9.9\r\nX-Kept: yes\r\n\r\n",
    );
    assert_eq!(client.answer().text(), "hello");
    let seen = &backend.seen()[0];
    assert_eq!(seen.line(), "GET /a?b=c HTTP/1.1");
    for gone in [
        "connection",
        "x-private",
        "keep-alive",
        "te",
        "proxy-connection",
        "trailer",
        "upgrade",
    ] {
        assert_eq!(seen.header(gone), None, "{gone}");
    }
    let id = seen.header("x-request-id").unwrap();
    assert!(
        id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{id}"
    );
    for (name, value) in [
        ("host", "shop"),
        ("x-kept", "yes"),
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
        assert_eq!(seen.header(name), Some(value), "{name}");
    }
}

#[test]
fn a_request_id_of_the_client_is_kept() {
    let backend = Backend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    sidecar
        .client()
        .send("GET / HTTP/1.1\r\nhost: a\r\nx-request-id: mine\r\n\r\n")
        .answer();
    assert_eq!(backend.seen()[0].header("x-request-id"), Some("mine"));
    assert_eq!(sidecar.log(1)[0]["request_id"], "mine");
}

#[test]
fn an_answer_of_the_apps_never_claims_to_be_the_sidecars() {
    let backend = Backend::answering(|_| {
        "HTTP/1.1 503 No\r\nx-outrigger-reason: spoofed\r\nconnection: x-secret\r\nx-secret: 1\r\nkeep-alive: timeout=9\r\ncontent-length: 2\r\n\r\nno".into()
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let answer = sidecar.get("/");
    assert_eq!(
        (answer.status, answer.text().as_str(), answer.reason()),
        (503, "no", "")
    );
    assert_eq!(
        (
            answer.header("proxy-status"),
            answer.header("x-secret"),
            answer.header("keep-alive")
        ),
        (None, None, None)
    );
    assert_eq!(answer.header("via"), Some("1.1 outrigger"));
}

#[test]
fn repeated_fields_keep_their_order_and_the_reason_phrase_is_kept() {
    let backend = Backend::answering(|_| {
        "HTTP/1.1 418 Short And Stout\r\nSet-Cookie: a=1\r\nX-Other: x\r\nSet-Cookie: b=2\r\ncontent-length: 0\r\n\r\n".into()
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    let (_, head) = client
        .send("GET / HTTP/1.1\r\nhost: a\r\nAccept: a\r\nx-between: 1\r\naccept: b\r\n\r\n")
        .head()
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
    let seen = &backend.seen()[0].head;
    let accepted: Vec<&str> = seen
        .lines()
        .filter_map(|line| line.split_once(": "))
        .filter(|(name, _)| name.eq_ignore_ascii_case("accept"))
        .map(|(_, value)| value)
        .collect();
    assert_eq!(accepted, ["a", "b"]);
}

#[test]
fn connections_are_kept_alive_on_both_sides() {
    let backend = Backend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    for _ in 0..50 {
        assert_eq!(client.get("/").status, 200);
    }
    assert_eq!((backend.seen().len(), backend.connections()), (50, 1));
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let backend = Backend::answering(|request| ok(request.line()));
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    client.send("GET /1 HTTP/1.1\r\nhost: a\r\n\r\nPOST /2 HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabcGET /3 HTTP/1.1\r\nhost: a\r\n\r\n");
    let lines: Vec<String> = (0..3).map(|_| client.answer().text()).collect();
    assert_eq!(
        lines,
        ["GET /1 HTTP/1.1", "POST /2 HTTP/1.1", "GET /3 HTTP/1.1"]
    );
}

#[test]
fn an_http_1_0_client_gets_an_answer_that_ends_with_the_connection() {
    let backend = Backend::answering(|_| {
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".into()
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let answer = sidecar.client().send("GET / HTTP/1.0\r\n\r\n").answer();
    assert_eq!(
        (
            answer.text().as_str(),
            answer.header("transfer-encoding"),
            answer.header("connection")
        ),
        ("hello", None, Some("close"))
    );
    let seen = &backend.seen()[0];
    assert_eq!(
        (seen.line(), seen.header("host")),
        ("GET / HTTP/1.1", Some(backend.address.to_string().as_str()))
    );
}

#[test]
fn an_answer_without_framing_is_framed() {
    let backend = Backend::start(|mut connection| {
        connection.request();
        connection.send("HTTP/1.1 200 OK\r\n\r\nuntil the end");
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let answer = sidecar.get("/");
    assert_eq!(
        (
            answer.text().as_str(),
            answer.is_complete,
            answer.header("transfer-encoding")
        ),
        ("until the end", true, Some("chunked"))
    );
}

#[test]
fn head_and_bodiless_answers_have_no_body_and_keep_the_connection() {
    let backend = Backend::answering(|request| match request.line().split(' ').next() {
        Some("HEAD") => "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n".into(),
        Some("DELETE") => "HTTP/1.1 204 No Content\r\n\r\n".into(),
        Some("PUT") => "HTTP/1.1 304 Not Modified\r\ncontent-length: 10\r\n\r\n".into(),
        _ => ok("x"),
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    client.send("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n");
    let (status, head) = client.head().unwrap();
    let head = client.body(status, head, false);
    assert_eq!(
        (head.status, head.header("content-length")),
        (200, Some("1000"))
    );
    assert_eq!(
        client
            .send("DELETE / HTTP/1.1\r\nhost: a\r\n\r\n")
            .answer()
            .status,
        204
    );
    assert_eq!(
        client
            .send("PUT / HTTP/1.1\r\nhost: a\r\n\r\n")
            .answer()
            .status,
        304
    );
    assert_eq!(client.get("/").text(), "x");
    assert_eq!(backend.connections(), 1);
}

#[test]
fn interim_answers_pass_and_a_100_lets_the_body_come() {
    let backend = Backend::start(|mut connection| {
        let head = connection.head().unwrap();
        assert!(
            head.to_lowercase().contains("expect: 100-continue"),
            "{head}"
        );
        connection.send(
            "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n",
        );
        assert_eq!(connection.exactly(4).unwrap(), b"body");
        connection.send(ok("done"));
    });
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let mut client = sidecar.client();
    client.send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n");
    let (hints, head) = client.head().unwrap();
    assert_eq!((hints, head.contains("</a.css>")), (103, true));
    assert_eq!(client.head().unwrap().0, 100);
    assert_eq!(client.send("body").answer().text(), "done");
}

#[test]
fn routes_are_chosen_by_host_path_method_and_header() {
    let [plain, exact, prefix, regex, method, header] =
        ["plain", "exact", "prefix", "regex", "method", "header"]
            .map(|name| Backend::answering(move |_| ok(name)));
    let backends = [
        ("plain", &plain),
        ("exact", &exact),
        ("prefix", &prefix),
        ("regex", &regex),
        ("method", &method),
        ("header", &header),
    ];
    let matches = [
        ("plain", ""),
        (
            "exact",
            "hostnames: [pay.shop], matches: [{path: {type: Exact, value: /v1/a}}], ",
        ),
        (
            "prefix",
            "hostnames: [pay.shop], matches: [{path: {value: /v1}}], ",
        ),
        (
            "regex",
            "hostnames: [\"*.shop\"], matches: [{path: {type: RegularExpression, value: \"/items/[0-9]+\"}}], ",
        ),
        (
            "method",
            "hostnames: [pay.shop], matches: [{path: {value: /v1}, method: DELETE}], ",
        ),
        (
            "header",
            "hostnames: [pay.shop], matches: [{path: {value: /v1}, headers: [{name: X-Team, value: red}]}], ",
        ),
    ];
    let mut text = "apiVersion: outrigger.dev/v1alpha1\nkind: ResiliencePolicy\nmetadata: {name: test}\nspec:\n  listeners:\n    - {name: inbound, direction: Inbound, address: \"127.0.0.1:0\"}\n  backends:\n".to_owned();
    for (name, backend) in backends {
        text += &format!(
            "    - {{name: {name}, endpoints: [\"{}\"]}}\n",
            backend.address
        );
    }
    text += "  routes:\n";
    for (name, matches) in matches {
        text += &format!(
            "    - {{name: {name}, listeners: [inbound], {matches}backendRefs: [{{name: {name}}}]}}\n"
        );
    }
    let sidecar = Sidecar::start(&text);
    let ask = |request: &str| {
        sidecar
            .client()
            .send(format!("{request}\r\n\r\n"))
            .answer()
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
        assert_eq!(ask(request), expected, "{request}");
    }
    assert_eq!(
        exact.seen()[1].line(),
        "GET /v1/a HTTP/1.1",
        "absolute form becomes origin form"
    );
}

#[test]
fn a_request_that_no_route_takes_is_told_so() {
    let backend = Backend::healthy();
    let text =
        policy(&[backend.address], "").replace("backendRefs", "hostnames: [shop], backendRefs");
    let sidecar = Sidecar::start(&text);
    let answer = sidecar.get("/");
    assert_eq!(
        (
            answer.status,
            answer.reason(),
            answer.header("content-type")
        ),
        (404, "no_route", Some("application/problem+json"))
    );
    assert_eq!(
        answer.header("proxy-status"),
        Some("outrigger; error=destination_not_found; details=\"no_route\"")
    );
    let problem: serde_json::Value = serde_json::from_str(&answer.text()).unwrap();
    assert_eq!(
        (problem["status"].as_u64(), problem["reason"].as_str()),
        (Some(404), Some("no_route"))
    );
    assert_eq!(sidecar.log(1)[0]["reason"], "no_route");
}

#[test]
fn filters_change_headers_host_and_path_or_redirect() {
    let backend = Backend::answering(|_| {
        "HTTP/1.1 200 OK\r\nserver: app\r\nx-old: 1\r\ncontent-length: 0\r\n\r\n".into()
    });
    let text = policy(&[backend.address], "").replace(
        "    - {name: in, listeners: [inbound], backendRefs: [{name: app}]}\n",
        "    - name: in
      listeners: [inbound]
      matches: [{path: {value: /api}}]
      backendRefs: [{name: app}]
      filters:
        - {type: RequestHeaderModifier, requestHeaderModifier: {remove: [cookie], set: [{name: x-env, value: prod}], add: [{name: accept, value: text/html}]}}
        - {type: ResponseHeaderModifier, responseHeaderModifier: {remove: [server], set: [{name: x-old, value: \"2\"}]}}
        - {type: URLRewrite, urlRewrite: {hostname: app.internal, path: {type: ReplacePrefixMatch, replacePrefixMatch: /v2}}}
    - name: moved
      listeners: [inbound]
      matches: [{path: {value: /old}}]
      filters:
        - {type: RequestRedirect, requestRedirect: {scheme: https, hostname: new.shop, statusCode: 308, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}
",
    );
    let sidecar = Sidecar::start(&text);
    let answer = sidecar.client().send("GET /api/items?x=1 HTTP/1.1\r\nhost: shop\r\ncookie: secret\r\nx-env: test\r\naccept: a/b\r\n\r\n").answer();
    assert_eq!(
        (answer.header("server"), answer.header("x-old")),
        (None, Some("2"))
    );
    let seen = &backend.seen()[0];
    assert_eq!(
        (
            seen.line(),
            seen.header("host"),
            seen.header("cookie"),
            seen.header("x-env")
        ),
        (
            "GET /v2/items?x=1 HTTP/1.1",
            Some("app.internal"),
            None,
            Some("prod")
        )
    );
    assert_eq!(seen.head.matches("accept:").count(), 2);
    assert_eq!(seen.header("x-forwarded-host"), Some("shop"));
    let moved = sidecar.get("/old/a?b");
    assert_eq!(
        (moved.status, moved.header("location"), moved.reason()),
        (308, Some("https://new.shop/new/a?b"), "redirect")
    );
}

#[test]
fn weights_split_requests_over_backends() {
    let (heavy, light, none) = (Backend::healthy(), Backend::healthy(), Backend::healthy());
    let text = format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: ResiliencePolicy\nmetadata: {{name: test}}\nspec:\n  listeners: [{{name: inbound, direction: Inbound, address: \"127.0.0.1:0\"}}]\n  backends:\n    \
         - {{name: heavy, endpoints: [\"{}\"]}}\n    - {{name: light, endpoints: [\"{}\"]}}\n    - {{name: none, endpoints: [\"{}\"]}}\n  routes:\n    \
         - {{name: in, listeners: [inbound], backendRefs: [{{name: heavy, weight: 90}}, {{name: light, weight: 10}}, {{name: none, weight: 0}}]}}\n",
        heavy.address, light.address, none.address
    );
    let sidecar = Sidecar::start(&text);
    let mut client = sidecar.client();
    for _ in 0..1_000 {
        client.get("/");
    }
    // 100 expected with a deviation of 9.5: six of those either side.
    assert!(
        (43..=157).contains(&light.seen().len()),
        "{}",
        light.seen().len()
    );
    assert_eq!(
        (heavy.seen().len() + light.seen().len(), none.seen().len()),
        (1_000, 0)
    );
}

#[test]
fn round_robin_takes_turns_and_least_request_avoids_the_busy() {
    let backends = [Backend::healthy(), Backend::healthy()];
    let text = policy(&[backends[0].address, backends[1].address], "").replace(
        "]}\n  routes",
        "], loadBalancer: {type: RoundRobin}}\n  routes",
    );
    let sidecar = Sidecar::start(&text);
    for _ in 0..10 {
        sidecar.get("/");
    }
    assert_eq!([backends[0].seen().len(), backends[1].seen().len()], [5, 5]);

    let stuck = Backend::start(|mut connection| {
        connection.request();
        connection.wait_for_close();
    });
    let free = Backend::healthy();
    let sidecar = Sidecar::start(&policy(&[stuck.address, free.address], ""));
    let mut holding: Vec<Client> = Vec::new();
    while stuck.seen().is_empty() {
        let mut client = sidecar.client();
        client.send("GET /hold HTTP/1.1\r\nhost: a\r\n\r\n");
        holding.push(client);
        crate::support::eventually("the request has arrived somewhere", || {
            stuck.seen().len() + free.seen().len() == holding.len()
        });
    }
    let before = stuck.seen().len();
    for _ in 0..50 {
        crate::support::eventually("only the held requests are in flight", || {
            sidecar.in_flight() == before
        });
        assert_eq!(sidecar.get("/").status, 200);
    }
    assert_eq!(
        stuck.seen().len(),
        before,
        "of two, the one with less to do wins"
    );
}

#[test]
fn an_outbound_request_does_not_tell_where_it_came_from() {
    let backend = Backend::answering(|_| {
        answer(200, "x").replace(
            "\r\n\r\n",
            "\r\nx-outrigger-reason: rate_limited:theirs\r\n\r\n",
        )
    });
    let sidecar = Sidecar::start(
        &policy(&[backend.address], "").replace("direction: Inbound", "direction: Outbound"),
    );
    let answer = sidecar.get("/");
    assert_eq!(backend.seen()[0].header("x-forwarded-for"), None);
    assert_eq!(
        answer.reason(),
        "rate_limited:theirs",
        "the other side's sidecar may say so"
    );
}

#[test]
fn a_request_that_goes_in_circles_is_stopped() {
    let backend = Backend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    let via = vec!["1.1 outrigger"; 16].join(", ");
    let answer = sidecar
        .client()
        .send(format!("GET / HTTP/1.1\r\nhost: a\r\nvia: {via}\r\n\r\n"))
        .answer();
    assert_eq!((answer.status, answer.reason()), (508, "loop_detected"));
    assert_eq!(backend.seen().len(), 0);
}

#[test]
fn one_line_is_written_about_each_request() {
    let backend = Backend::healthy();
    let sidecar = Sidecar::start(&policy(&[backend.address], ""));
    sidecar
        .client()
        .send("POST /a?secret=1 HTTP/1.1\r\nhost: shop\r\ncontent-length: 3\r\n\r\nabc")
        .answer();
    let line = &sidecar.log(1)[0];
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
