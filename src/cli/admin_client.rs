//! The subcommands that call the admin server of a running sidecar, and the HTTP client that
//! they share.
//!
//! The module knows the paths and status codes of the admin API. It prints response bodies as
//! they are, and computes nothing from them.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::{
    cli::{
        arguments::{AdminOptions, parse_duration, read_admin_token},
        output::{CommandOutcome, print_error, print_line},
    },
    clock,
};

/// Maximum time to wait for a response of the admin server. It exceeds the 30 seconds that a
/// reload may take.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(35);

/// Interval between two polls of the admin server.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Shows or changes circuit breakers.
#[derive(Debug, Args)]
pub(super) struct BreakerCommand {
    #[command(flatten)]
    admin: AdminOptions,
    /// Name of the circuit breaker. Without a name, all breakers are shown.
    name: Option<String>,
    /// Change to apply. Without a change, the breaker is shown.
    #[arg(value_enum)]
    change: Option<BreakerChange>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum BreakerChange {
    /// Rejects all calls until `reset` or `auto`.
    ForceOpen,
    /// Admits all calls without counting them, until `reset` or `auto`.
    Disable,
    /// Closes the breaker in any state, and clears its counts.
    Reset,
    /// Ends `force-open` or `disable`: closes the breaker. Otherwise it has no effect.
    Auto,
}

/// Checks whether a probe of a running sidecar passes.
#[derive(Debug, Args)]
pub(super) struct HealthcheckCommand {
    #[command(flatten)]
    admin: AdminOptions,
    /// Probe to check.
    #[arg(long, value_enum, default_value = "readyz")]
    probe: ProbeKind,
    /// Maximum time to wait for the probe to pass. By default, it is checked once.
    #[arg(long, default_value = "0s", value_parser = parse_duration, value_name = "DURATION")]
    wait: Duration,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ProbeKind {
    Livez,
    Readyz,
    Startupz,
}

pub(super) fn print_status(admin: &AdminOptions) -> CommandOutcome {
    print_response(admin, "GET", "/api/v1/status")
}

pub(super) fn request_reload(admin: &AdminOptions) -> CommandOutcome {
    print_response(admin, "POST", "/api/v1/reload")
}

impl BreakerCommand {
    pub(super) fn run(self) -> CommandOutcome {
        match (&self.name, self.change) {
            (None, _) => print_response(&self.admin, "GET", "/api/v1/breakers"),
            (Some(name), Some(change)) => {
                let word = match change {
                    BreakerChange::ForceOpen => "force-open",
                    BreakerChange::Disable => "disable",
                    BreakerChange::Reset => "reset",
                    BreakerChange::Auto => "auto",
                };
                print_response(
                    &self.admin,
                    "POST",
                    &format!("/api/v1/breakers/{name}/{word}"),
                )
            }
            (Some(name), None) => {
                let Some((_, body)) = send_request(&self.admin, "GET", "/api/v1/breakers") else {
                    return CommandOutcome::Unavailable;
                };
                let all: Value = serde_json::from_str(&body).unwrap_or_default();
                match all
                    .as_array()
                    .into_iter()
                    .flatten()
                    .find(|breaker| breaker["name"] == **name)
                {
                    Some(breaker) => print_line(&format!("{breaker:#}")),
                    None => {
                        print_error(&format!(
                            "there is no breaker `{name}`; without a name all are shown"
                        ));
                        return CommandOutcome::UsageError;
                    }
                }
                CommandOutcome::Success
            }
        }
    }
}

impl HealthcheckCommand {
    pub(super) fn run(self) -> CommandOutcome {
        let path = match self.probe {
            ProbeKind::Livez => "/livez",
            ProbeKind::Readyz => "/readyz",
            ProbeKind::Startupz => "/startupz",
        };
        let until = clock::now() + self.wait;
        while clock::now() < until {
            // The sidecar may not listen yet, so an error is treated like a failed probe.
            if matches!(
                try_send_request(&self.admin, "GET", path, Some(RESPONSE_TIMEOUT)),
                Ok((200, _))
            ) {
                return CommandOutcome::Success;
            }
            if let Err(outcome) = pause(POLL_INTERVAL) {
                return outcome;
            }
        }
        match send_request(&self.admin, "GET", path) {
            Some((200, _)) => CommandOutcome::Success,
            Some((_, body)) => {
                print_error(&body);
                CommandOutcome::Negative
            }
            None => CommandOutcome::Negative,
        }
    }
}

/// Blocks the thread for the duration, between two polls.
pub(super) fn pause(long: Duration) -> Result<(), CommandOutcome> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|error| {
            print_error(&format!("outrigger: {error}"));
            CommandOutcome::InternalError
        })?;
    runtime.block_on(clock::sleep(long));
    Ok(())
}

/// Prints the decision traces of the request with this id.
///
/// The outcome is [`CommandOutcome::Negative`] if the sidecar has no trace of the request.
pub(super) fn explain_request(admin: &AdminOptions, request: &str) -> CommandOutcome {
    if request.is_empty() || request.bytes().any(|byte| byte.is_ascii_control()) {
        print_error(&format!(
            "`{request}` is not the ID of a request: write the value of `x-request-id`"
        ));
        return CommandOutcome::UsageError;
    }
    let encoded: String = request
        .bytes()
        .map(|byte| {
            if byte.is_ascii_alphanumeric() {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect();
    let Some((_, body)) = send_request(
        admin,
        "GET",
        &format!("/api/v1/decisions?request={encoded}"),
    ) else {
        return CommandOutcome::Unavailable;
    };
    let found: Value = serde_json::from_str(&body).unwrap_or_default();
    let found = found.as_array().map(Vec::as_slice).unwrap_or_default();
    if found.is_empty() {
        print_error(&format!(
            "no decision of the request {request} is recorded: it was admitted without one, or \
             newer requests replaced it; see the access log"
        ));
        return CommandOutcome::Negative;
    }
    found
        .iter()
        .for_each(|trace| print_line(&describe_trace(trace)));
    CommandOutcome::Success
}

fn describe_trace(trace: &Value) -> String {
    let text = |key: &str| trace[key].as_str().unwrap_or_default();
    let outcome_detail = match text("reason") {
        "" => format!("by {} of {}", text("endpoint"), text("backend")),
        reason => format!("because of {reason}"),
    };
    let mut lines = vec![
        format!(
            "{} {} {}{}",
            text("at"),
            text("method"),
            text("host"),
            text("path")
        ),
        format!(
            "  route {}, backend {}, {} attempts",
            or_none(text("route")),
            or_none(text("backend")),
            trace["attempts"]
        ),
    ];
    for step in trace["steps"].as_array().into_iter().flatten() {
        lines.push(format!(
            "  {:>9.1} ms  {}",
            step["after_ms"].as_f64().unwrap_or_default(),
            step["text"].as_str().unwrap_or_default()
        ));
    }
    let took = trace["duration_ms"].as_f64().unwrap_or_default();
    lines.push(match trace["status"].as_u64() {
        None | Some(0) => format!("  {took:>9.1} ms  no response: {}", text("reason")),
        Some(status) => format!("  {took:>9.1} ms  response {status} {outcome_detail}"),
    });
    lines.join("\n")
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}

/// Sends a request to the admin server and prints the response, as indented JSON where possible.
fn print_response(admin: &AdminOptions, method: &str, path: &str) -> CommandOutcome {
    let Some((status, body)) = send_request(admin, method, path) else {
        return CommandOutcome::Unavailable;
    };
    let text = serde_json::from_str::<Value>(&body).map_or(body, |value| format!("{value:#}"));
    match status {
        200..=299 => {
            print_line(&text);
            CommandOutcome::Success
        }
        _ => report_refusal(status, &text),
    }
}

/// Prints the body of an error response and maps its status to an outcome.
pub(super) fn report_refusal(status: u16, text: &str) -> CommandOutcome {
    print_error(text);
    match status {
        422 => CommandOutcome::PolicyRefused,
        503 => CommandOutcome::Unavailable,
        _ => CommandOutcome::UsageError,
    }
}

/// Sends a request to the admin server. Returns `None` after printing the error if no response
/// arrives.
pub(super) fn send_request(
    admin: &AdminOptions,
    method: &str,
    path: &str,
) -> Option<(u16, String)> {
    try_send_request(admin, method, path, Some(RESPONSE_TIMEOUT))
        .map_err(|error| {
            print_error(&format!(
                "no sidecar responds at {}: {error}; name another address with --admin",
                admin.admin
            ))
        })
        .ok()
}

/// Sends one HTTP/1.1 request on a new connection and reads the response to its end.
///
/// The admin server closes the connection after the response, because the request demands it.
/// `timeout` limits each read; `None` waits without a limit.
pub(super) fn try_send_request(
    admin: &AdminOptions,
    method: &str,
    path: &str,
    timeout: Option<Duration>,
) -> io::Result<(u16, String)> {
    let token = admin
        .admin_token_file
        .as_ref()
        .map(read_admin_token)
        .transpose()
        .map_err(io::Error::other)?;
    let authorization = token
        .map(|token| format!("authorization: Bearer {token}\r\n"))
        .unwrap_or_default();
    let mut stream = TcpStream::connect_timeout(&admin.admin, Duration::from_secs(2))?;
    stream.set_read_timeout(timeout)?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-length: \
         0\r\n{authorization}\r\n",
        admin.admin
    )?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let (head, body) = response
        .split_once("\r\n\r\n")
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or(io::ErrorKind::InvalidData)?;
    Ok((status, body.to_owned()))
}
