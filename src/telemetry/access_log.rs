//! One JSON line per request, on standard output, never waited for.
//!
//! A line is put together in a buffer of the thread's own and handed to a bounded queue; a thread of its own writes it out. If
//! the reader of standard output is too slow the queue overflows, lines are dropped, and the drops are counted: a log must not
//! stop the traffic that it is about.

use std::{
    cell::RefCell,
    fmt::Write as _,
    io::{self, Write},
    net::IpAddr,
    time::Duration,
};

use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};

use super::reason::Reason;

/// Lines that may wait to be written; at about 400 bytes each, some 3 MiB.
const QUEUE: usize = 8192;

/// What is written to standard output at once, in bytes: a pipe takes so much whole, or not at all (`PIPE_BUF` of Linux), so that
/// no line is torn by another writer of the same pipe.
const BATCH: usize = 4096;

thread_local! {
    static LINE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// What is known of a request when it has ended.
#[derive(Debug)]
pub struct Record<'a> {
    /// When it ended, written out.
    pub timestamp: std::fmt::Arguments<'a>,
    /// The listener.
    pub listener: &'a str,
    /// The route, if one took it.
    pub route: &'a str,
    /// The backend, if one was asked.
    pub backend: &'a str,
    /// The endpoint of the last attempt.
    pub endpoint: &'a str,
    /// The client.
    pub client: Option<IpAddr>,
    /// The method.
    pub method: &'a str,
    /// The host.
    pub host: &'a str,
    /// The path, without its query.
    pub path: &'a str,
    /// The status that the client saw; 0 if none.
    pub status: u16,
    /// The status of gRPC, if it was a call of that.
    pub grpc_status: Option<u8>,
    /// Why, if not because the app said so.
    pub reason: Option<Reason>,
    /// What belongs to the reason: a breaker, a rule.
    pub detail: &'a str,
    /// Attempts made.
    pub attempts: u32,
    /// Bytes of the request's body.
    pub received: u64,
    /// Bytes of the answer's body.
    pub sent: u64,
    /// From the head of the request to the end of the answer.
    pub duration: Duration,
    /// The request's id.
    pub request_id: &'a str,
    /// The trace context that came with it.
    pub traceparent: &'a str,
}

/// Lines that leave in one write: the writing thread flushes when no line waits. What cannot be written is let go, unlike in a
/// `BufWriter`, which would hold it and let every later flush fail.
#[derive(Debug)]
struct Batch<W> {
    lines: Vec<u8>,
    sink: W,
}

impl<W: Write> Write for Batch<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.lines.len() + line.len() > BATCH {
            self.flush()?;
        }
        self.lines.extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let written = self
            .sink
            .write_all(&self.lines)
            .and_then(|()| self.sink.flush());
        self.lines.clear();
        written
    }
}

/// The access log.
#[derive(Debug)]
pub struct AccessLog {
    writer: Option<NonBlocking>,
    /// Writes out what waits when it is dropped.
    _guard: Option<WorkerGuard>,
}

impl AccessLog {
    /// Begins to write to standard output.
    #[must_use]
    pub fn to_stdout() -> Self {
        Self::to(Batch {
            lines: Vec::with_capacity(BATCH),
            sink: io::stdout(),
        })
    }

    /// Begins to write to anything.
    #[must_use]
    pub fn to(sink: impl Write + Send + 'static) -> Self {
        let (writer, guard) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(QUEUE)
            .thread_name("access-log")
            .finish(sink);
        Self {
            writer: Some(writer),
            _guard: Some(guard),
        }
    }

    /// Writes nothing.
    #[must_use]
    pub fn off() -> Self {
        Self {
            writer: None,
            _guard: None,
        }
    }

    /// Whether anything is written at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.writer.is_some()
    }

    /// Lines dropped since the start.
    #[must_use]
    pub fn dropped(&self) -> usize {
        self.writer
            .as_ref()
            .map_or(0, |writer| writer.error_counter().dropped_lines())
    }

    /// Writes one line.
    pub fn write(&self, record: &Record<'_>) {
        let Some(writer) = &self.writer else { return };
        LINE.with_borrow_mut(|line| {
            line.clear();
            // Writing to a String cannot fail.
            _ = put(line, record);
            // A full queue counts its drops itself.
            _ = writer.clone().write_all(line.as_bytes());
        });
    }
}

fn put(line: &mut String, record: &Record<'_>) -> std::fmt::Result {
    write!(
        line,
        "{{\"time\":\"{}\",\"listener\":\"{}\",\"route\":\"{}\",\"backend\":\"{}\"",
        record.timestamp, record.listener, record.route, record.backend
    )?;
    write!(line, ",\"endpoint\":\"{}\",\"client\":\"", record.endpoint)?;
    if let Some(client) = record.client {
        write!(line, "{client}")?;
    }
    line.push_str("\",\"method\":\"");
    escape(line, record.method);
    line.push_str("\",\"host\":\"");
    escape(line, record.host);
    line.push_str("\",\"path\":\"");
    escape(line, record.path);
    write!(line, "\",\"status\":{}", record.status)?;
    if let Some(status) = record.grpc_status {
        write!(line, ",\"grpc_status\":{status}")?;
    }
    write!(
        line,
        ",\"reason\":\"{}",
        record.reason.map_or("", Reason::token)
    )?;
    if !record.detail.is_empty() {
        line.push(':');
        escape(line, record.detail);
    }
    write!(
        line,
        "\",\"attempts\":{},\"bytes_received\":{},\"bytes_sent\":{},\"duration_ms\":{}.{:03},\"request_id\":\"",
        record.attempts,
        record.received,
        record.sent,
        record.duration.as_millis(),
        record.duration.as_micros() % 1_000
    )?;
    escape(line, record.request_id);
    line.push_str("\",\"traceparent\":\"");
    escape(line, record.traceparent);
    line.push_str("\"}\n");
    Ok(())
}

/// Writes a text as the inside of a JSON string.
fn escape(line: &mut String, text: &str) {
    for character in text.chars() {
        match character {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            control if control < ' ' => {
                // Writing to a String cannot fail.
                _ = write!(line, "\\u{:04x}", u32::from(control));
            }
            other => line.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Notes each write; fails while it is broken.
    #[derive(Default)]
    struct Pipe {
        writes: Vec<usize>,
        is_broken: bool,
    }

    impl Write for Pipe {
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
    fn lines_leave_together_and_never_in_more_than_a_pipe_takes_whole() {
        let mut batch = Batch {
            lines: Vec::new(),
            sink: Pipe::default(),
        };
        for _ in 0..5 {
            batch.write_all(&[b'x'; 1500]).expect("the pipe takes it");
        }
        batch.flush().expect("the pipe takes it");
        assert_eq!(batch.sink.writes, [3000, 3000, 1500]);
    }

    #[test]
    fn what_a_broken_pipe_does_not_take_is_let_go() {
        let mut batch = Batch {
            lines: Vec::new(),
            sink: Pipe {
                is_broken: true,
                ..Pipe::default()
            },
        };
        batch.write_all(b"lost").expect("it is only kept");
        assert!(batch.flush().is_err());
        assert!(batch.flush().is_ok(), "nothing is left to write");
    }

    #[test]
    fn a_line_is_one_json_object_whatever_the_client_sent() {
        let record = Record {
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
            received: 3,
            sent: 4,
            duration: Duration::from_micros(1_234_567),
            request_id: "id",
            traceparent: "",
        };
        let mut line = String::new();
        put(&mut line, &record).expect("a String takes all");
        assert!(line.ends_with('\n') && line.matches('\n').count() == 1);
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(value["path"], "/\\\u{1}\n\u{fc}");
        assert_eq!(value["host"], "a\"b");
        assert_eq!(value["reason"], "breaker_open:app");
        assert_eq!(value["duration_ms"], 1234.567);
    }
}
