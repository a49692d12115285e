use crate::telemetry::access_log::*;

/// Records the size of each write. Every write fails while `is_broken` is set.
#[derive(Default)]
struct RecordingPipe {
    writes: Vec<usize>,
    is_broken: bool,
}

impl Write for RecordingPipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.writes.push(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn lines_are_batched_into_writes_of_at_most_the_atomic_pipe_size() {
    let mut batch = LineBatch {
        lines: Vec::new(),
        sink: RecordingPipe::default(),
    };
    for _ in 0..5 {
        batch.write_all(&[b'x'; 1500]).expect("the pipe takes it");
    }
    batch.flush().expect("the pipe takes it");
    assert_eq!(batch.sink.writes, [3000, 3000, 1500]);
}

#[test]
fn a_failed_write_discards_the_batch() {
    let mut batch = LineBatch {
        lines: Vec::new(),
        sink: RecordingPipe {
            is_broken: true,
            ..RecordingPipe::default()
        },
    };
    batch.write_all(b"lost").expect("it is only kept");
    assert!(batch.flush().is_err());
    assert!(batch.flush().is_ok(), "nothing is left to write");
}

#[test]
fn a_line_is_one_json_object_whatever_the_client_sent() {
    let entry = AccessLogEntry {
        timestamp: format_args!("2026-11-20T00:00:00.000Z"),
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
    format_line(&mut line, &entry).expect("a String takes all");
    assert!(line.ends_with('\n') && line.matches('\n').count() == 1);
    let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(value["path"], "/\\\u{1}\n\u{fc}");
    assert_eq!(value["host"], "a\"b");
    assert_eq!(value["reason"], "breaker_open:app");
    assert_eq!(value["duration_ms"], 1234.567);
}
