use std::{net::IpAddr, time::Duration};

use crate::telemetry::{access_log::*, reason::Reason};

#[test]
fn a_line_is_one_json_object_whatever_the_client_sent() {
    let entry = AccessLogEntry {
        timestamp: "2026-11-20T00:00:00.000Z",
        listener: "inbound",
        route: "in",
        backend: "app",
        endpoint: "127.0.0.1:8080",
        client: Some(IpAddr::from([127, 0, 0, 1])),
        method: "GET",
        host: "a\"b",
        path: "/\\\u{1}\n\u{fc}",
        status: 503,
        grpc_status: None,
        reason: Some(Reason::BreakerOpen),
        detail: "app",
        attempts: 2,
        bytes_received: 3,
        bytes_sent: 4,
        duration: Duration::from_micros(1_234_567),
        request_id: "id",
        traceparent: "",
    };
    let mut line = String::new();
    line::append(&mut line, &entry);
    assert!(line.ends_with('\n') && line.matches('\n').count() == 1);
    let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(value["path"], "/\\\u{1}\n\u{fc}");
    assert_eq!(value["host"], "a\"b");
    assert_eq!(value["reason"], "breaker_open:app");
    assert_eq!(value["client"], "127.0.0.1");
    assert!(line.contains("\"duration_ms\":1234.567,"), "{line}");
    let short = AccessLogEntry {
        duration: Duration::from_micros(7),
        client: Some(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1])),
        ..entry
    };
    line.clear();
    line::append(&mut line, &short);
    assert!(line.contains("\"duration_ms\":0.007,"), "{line}");
    assert!(line.contains("\"client\":\"2001:db8::1\""), "{line}");
}
