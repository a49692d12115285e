//! Formats the line of one request, a JSON object.
//!
//! `std::fmt` is avoided, because it costs more than the rest of the line.

use std::{fmt::Write as _, net::IpAddr};

use crate::telemetry::{access_log::entry::AccessLogEntry, reason::Reason};

/// Appends the line of a request, with its end.
pub(super) fn append(line: &mut String, entry: &AccessLogEntry<'_>) {
    line.push_str("{\"time\":\"");
    line.push_str(entry.timestamp);
    for (name, text) in [
        ("\",\"listener\":\"", entry.listener),
        ("\",\"route\":\"", entry.route),
        ("\",\"backend\":\"", entry.backend),
        ("\",\"endpoint\":\"", entry.endpoint),
    ] {
        line.push_str(name);
        line.push_str(text);
    }
    line.push_str("\",\"client\":\"");
    if let Some(client) = entry.client {
        append_address(line, client);
    }
    for (name, text) in [
        ("\",\"method\":\"", entry.method),
        ("\",\"host\":\"", entry.host),
        ("\",\"path\":\"", entry.path),
    ] {
        line.push_str(name);
        append_escaped(line, text);
    }
    line.push_str("\",\"status\":");
    append_number(line, entry.status.into());
    if let Some(status) = entry.grpc_status {
        line.push_str(",\"grpc_status\":");
        append_number(line, status.into());
    }
    line.push_str(",\"reason\":\"");
    line.push_str(entry.reason.map_or("", Reason::token));
    if !entry.detail.is_empty() {
        line.push(':');
        append_escaped(line, entry.detail);
    }
    line.push_str("\",\"attempts\":");
    append_number(line, entry.attempts.into());
    line.push_str(",\"bytes_received\":");
    append_number(line, entry.bytes_received);
    line.push_str(",\"bytes_sent\":");
    append_number(line, entry.bytes_sent);
    line.push_str(",\"duration_ms\":");
    append_millis(line, entry.duration);
    line.push_str(",\"request_id\":\"");
    append_escaped(line, entry.request_id);
    line.push_str("\",\"traceparent\":\"");
    append_escaped(line, entry.traceparent);
    line.push_str("\"}\n");
}

fn append_number(line: &mut String, number: u64) {
    line.push_str(itoa::Buffer::new().format(number));
}

/// Appends a duration in milliseconds, with three decimal places.
fn append_millis(line: &mut String, duration: std::time::Duration) {
    let micros = duration.subsec_micros();
    let millis = duration.as_secs().saturating_mul(1_000) + u64::from(micros / 1_000);
    append_number(line, millis);
    line.push('.');
    let fraction = micros % 1_000;
    if fraction < 100 {
        line.push('0');
    }
    if fraction < 10 {
        line.push('0');
    }
    append_number(line, fraction.into());
}

fn append_address(line: &mut String, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            let [first, rest @ ..] = address.octets();
            append_number(line, first.into());
            for octet in rest {
                line.push('.');
                append_number(line, octet.into());
            }
        }
        // The text form of IPv6 has many rules (RFC 5952). Writing to a String cannot fail.
        IpAddr::V6(address) => _ = write!(line, "{address}"),
    }
}

/// Appends a text as the content of a JSON string.
fn append_escaped(line: &mut String, text: &str) {
    let needs_escape = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
    if !text.bytes().any(needs_escape) {
        return line.push_str(text);
    }
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
