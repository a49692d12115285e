//! Renders one JSON line per request and writes it to standard output without blocking.
//!
//! A line is formatted in a buffer of the current thread and handed to a bounded queue. A separate
//! thread writes the queued lines. If the reader of standard output is too slow, the queue
//! overflows. Lines are then dropped and counted, because a log must not stop the traffic that it
//! describes.
//!
//! The module does not know which requests are logged; its caller decides that.

use std::{
    cell::RefCell,
    fmt::Write as _,
    io::{self, Write},
    net::IpAddr,
    time::Duration,
};

use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};

use crate::telemetry::reason::Reason;

/// Maximum number of lines that wait to be written. At about 400 bytes each, they use about 3 MiB.
const MAX_QUEUED_LINES: usize = 8192;

/// Maximum size of a batch that is written to standard output at once, in bytes. Linux writes up to
/// `PIPE_BUF` bytes to a pipe atomically. Another writer of the same pipe therefore cannot split a
/// line, unless the line alone exceeds this size.
const BATCH_BYTES_MAX: usize = 4096;

thread_local! {
    static LINE_BUFFER: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Facts about a completed request that its log line states.
#[derive(Debug)]
pub struct AccessLogEntry<'a> {
    /// Time at which the request ended, as text.
    pub timestamp: std::fmt::Arguments<'a>,
    /// Name of the listener that accepted the request.
    pub listener: &'a str,
    /// Name of the matched route; empty if none matched.
    pub route: &'a str,
    /// Name of the backend that was selected last; empty if none was selected.
    pub backend: &'a str,
    /// Address of the endpoint of the last attempt; empty without an attempt.
    pub endpoint: &'a str,
    /// IP address of the client; `None` leaves the field empty.
    pub client: Option<IpAddr>,
    /// HTTP method of the request.
    pub method: &'a str,
    /// Requested host, as the client sent it.
    pub host: &'a str,
    /// Path of the request, without its query.
    pub path: &'a str,
    /// HTTP status of the response to the client; 0 if no response was sent.
    pub status: u16,
    /// Status of a gRPC call; `None` omits the field.
    pub grpc_status: Option<u8>,
    /// Reason of a rejection or of an incomplete response; `None` leaves the field empty.
    pub reason: Option<Reason>,
    /// Breaker, rule, limit or endpoint that belongs to the reason; may be empty.
    pub detail: &'a str,
    /// Number of attempts. An attempt that replaces an unprocessed one is not counted.
    pub attempts: u32,
    /// Number of bytes of the request body that the client sent.
    pub bytes_received: u64,
    /// Number of bytes of the response body that were sent to the client.
    pub bytes_sent: u64,
    /// Duration from the request head to the end of the response.
    pub duration: Duration,
    /// Identifier of the request, which the decision log also states.
    pub request_id: &'a str,
    /// Value of the client's `traceparent` header; empty if there is none.
    pub traceparent: &'a str,
}

/// Collects lines and writes them together. The writing thread flushes the batch when no line is
/// queued.
///
/// A batch that cannot be written is discarded. A `BufWriter` would retain it, and every later
/// flush would fail.
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

/// Writer of the access log, with a bounded queue and a separate thread.
#[derive(Debug)]
pub struct AccessLogWriter {
    writer: Option<NonBlocking>,
    /// Writes the queued lines when it is dropped.
    _worker_guard: Option<WorkerGuard>,
}

impl AccessLogWriter {
    /// Creates a writer that writes to standard output in batches.
    #[must_use]
    pub fn to_stdout() -> Self {
        Self::to_sink(LineBatch {
            lines: Vec::with_capacity(BATCH_BYTES_MAX),
            sink: io::stdout(),
        })
    }

    /// Creates a writer that passes each line to `sink` on a separate thread.
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

    /// Creates a writer that discards every entry.
    #[must_use]
    pub fn disabled() -> Self {
        Self {
            writer: None,
            _worker_guard: None,
        }
    }

    /// Returns whether entries are written at all.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.writer.is_some()
    }

    /// Returns the number of lines that were dropped since the writer was created.
    #[must_use]
    pub fn dropped_lines(&self) -> usize {
        self.writer
            .as_ref()
            .map_or(0, |writer| writer.error_counter().dropped_lines())
    }

    /// Queues the line of one request. If the queue is full, the line is dropped and counted.
    pub fn write(&self, entry: &AccessLogEntry<'_>) {
        let Some(writer) = &self.writer else { return };
        LINE_BUFFER.with_borrow_mut(|line| {
            line.clear();
            // Writing to a String cannot fail.
            _ = format_line(line, entry);
            // A full queue counts the dropped line itself.
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

/// Appends a text as the content of a JSON string.
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
