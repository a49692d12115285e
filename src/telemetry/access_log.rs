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

use crate::telemetry::reason::Reason;

/// Lines that may wait to be written; at about 400 bytes each, some 3 MiB.
const MAX_QUEUED_LINES: usize = 8192;

/// What is written to standard output at once, in bytes: a pipe takes so much whole, or not at all (`PIPE_BUF` of Linux), so that
/// no line is torn by another writer of the same pipe.
const BATCH_BYTES_MAX: usize = 4096;

thread_local! {
    static LINE_BUFFER: RefCell<String> = const { RefCell::new(String::new()) };
}

/// What is known of a request when it has ended.
#[derive(Debug)]
pub struct AccessLogEntry<'a> {
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
    pub bytes_received: u64,
    /// Bytes of the answer's body.
    pub bytes_sent: u64,
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
struct LineBatch<W> {
    lines: Vec<u8>,
    sink: W,
}

impl<W: Write> Write for LineBatch<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.lines.len() + line.len() > BATCH_BYTES_MAX {
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
pub struct AccessLogWriter {
    writer: Option<NonBlocking>,
    /// Writes out what waits when it is dropped.
    _worker_guard: Option<WorkerGuard>,
}

impl AccessLogWriter {
    /// Begins to write to standard output.
    #[must_use]
    pub fn to_stdout() -> Self {
        Self::to_sink(LineBatch {
            lines: Vec::with_capacity(BATCH_BYTES_MAX),
            sink: io::stdout(),
        })
    }

    /// Begins to write to anything.
    #[must_use]
    pub fn to_sink(sink: impl Write + Send + 'static) -> Self {
        let (writer, guard) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(MAX_QUEUED_LINES)
            .thread_name("access-log")
            .finish(sink);
        Self {
            writer: Some(writer),
            _worker_guard: Some(guard),
        }
    }

    /// Writes nothing.
    #[must_use]
    pub fn disabled() -> Self {
        Self {
            writer: None,
            _worker_guard: None,
        }
    }

    /// Whether anything is written at all.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.writer.is_some()
    }

    /// Lines dropped since the start.
    #[must_use]
    pub fn dropped_lines(&self) -> usize {
        self.writer
            .as_ref()
            .map_or(0, |writer| writer.error_counter().dropped_lines())
    }

    /// Writes one line.
    pub fn write(&self, entry: &AccessLogEntry<'_>) {
        let Some(writer) = &self.writer else { return };
        LINE_BUFFER.with_borrow_mut(|line| {
            line.clear();
            // Writing to a String cannot fail.
            _ = format_line(line, entry);
            // A full queue counts its drops itself.
            _ = writer.clone().write_all(line.as_bytes());
        });
    }
}

fn format_line(line: &mut String, entry: &AccessLogEntry<'_>) -> std::fmt::Result {
    write!(
        line,
        "{{\"time\":\"{}\",\"listener\":\"{}\",\"route\":\"{}\",\"backend\":\"{}\"",
        entry.timestamp, entry.listener, entry.route, entry.backend
    )?;
    write!(line, ",\"endpoint\":\"{}\",\"client\":\"", entry.endpoint)?;
    if let Some(client) = entry.client {
        write!(line, "{client}")?;
    }
    line.push_str("\",\"method\":\"");
    escape_json(line, entry.method);
    line.push_str("\",\"host\":\"");
    escape_json(line, entry.host);
    line.push_str("\",\"path\":\"");
    escape_json(line, entry.path);
    write!(line, "\",\"status\":{}", entry.status)?;
    if let Some(status) = entry.grpc_status {
        write!(line, ",\"grpc_status\":{status}")?;
    }
    write!(
        line,
        ",\"reason\":\"{}",
        entry.reason.map_or("", Reason::token)
    )?;
    if !entry.detail.is_empty() {
        line.push(':');
        escape_json(line, entry.detail);
    }
    write!(
        line,
        "\",\"attempts\":{},\"bytes_received\":{},\"bytes_sent\":{},\"duration_ms\":{}.{:03},\
         \"request_id\":\"",
        entry.attempts,
        entry.bytes_received,
        entry.bytes_sent,
        entry.duration.as_millis(),
        entry.duration.as_micros() % 1_000
    )?;
    escape_json(line, entry.request_id);
    line.push_str("\",\"traceparent\":\"");
    escape_json(line, entry.traceparent);
    line.push_str("\"}\n");
    Ok(())
}

/// Writes a text as the inside of a JSON string.
fn escape_json(line: &mut String, text: &str) {
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
mod tests;
