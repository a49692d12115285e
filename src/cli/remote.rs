//! The subcommands that talk to a running sidecar.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::{Admin, Outcome, complain, run::read_token, say};
use crate::{clock, policy::units::Span};

/// The longest that a running sidecar may take to answer: a reload reads files.
pub(super) const PATIENCE: Duration = Duration::from_secs(35);

/// How often it is looked whether something has happened.
pub(super) const ASK_EVERY: Duration = Duration::from_millis(200);

/// Show or change breakers.
#[derive(Debug, Args)]
pub(super) struct Breaker {
    #[command(flatten)]
    admin: Admin,
    /// The breaker; without one all are shown.
    name: Option<String>,
    /// What to do with it; without this it is shown.
    #[arg(value_enum)]
    change: Option<Change>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Change {
    /// Refuse all calls until reset or auto.
    ForceOpen,
    /// Let all calls pass, uncounted, until reset or auto.
    Disable,
    /// Close it, with empty counts.
    Reset,
    /// End what was set by hand.
    Auto,
}

/// Ask whether it is ready.
#[derive(Debug, Args)]
pub(super) struct Healthcheck {
    #[command(flatten)]
    admin: Admin,
    /// What to ask.
    #[arg(long, value_enum, default_value = "readyz")]
    probe: Probe,
    /// Waits for a good answer, up to so long.
    #[arg(long, default_value = "0s", value_parser = span, value_name = "DURATION")]
    wait: Duration,
}

/// A time, as policies write it.
pub(super) fn span(text: &str) -> Result<Duration, String> {
    text.parse::<Span>()
        .map(|span| span.0)
        .map_err(|invalid| invalid.to_string())
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Probe {
    Livez,
    Readyz,
    Startupz,
}

pub(super) fn status(admin: &Admin) -> Outcome {
    show(admin, "GET", "/api/v1/status")
}

pub(super) fn reload(admin: &Admin) -> Outcome {
    show(admin, "POST", "/api/v1/reload")
}

impl Breaker {
    pub(super) fn run(self) -> Outcome {
        match (&self.name, self.change) {
            (None, _) => show(&self.admin, "GET", "/api/v1/breakers"),
            (Some(name), Some(change)) => {
                let word = match change {
                    Change::ForceOpen => "force-open",
                    Change::Disable => "disable",
                    Change::Reset => "reset",
                    Change::Auto => "auto",
                };
                show(
                    &self.admin,
                    "POST",
                    &format!("/api/v1/breakers/{name}/{word}"),
                )
            }
            (Some(name), None) => {
                let Some((_, body)) = ask(&self.admin, "GET", "/api/v1/breakers") else {
                    return Outcome::Unavailable;
                };
                let all: Value = serde_json::from_str(&body).unwrap_or_default();
                match all
                    .as_array()
                    .into_iter()
                    .flatten()
                    .find(|breaker| breaker["name"] == **name)
                {
                    Some(breaker) => say(&format!("{breaker:#}")),
                    None => {
                        complain(&format!(
                            "there is no breaker `{name}`; without a name all are shown"
                        ));
                        return Outcome::Usage;
                    }
                }
                Outcome::Fine
            }
        }
    }
}

impl Healthcheck {
    pub(super) fn run(self) -> Outcome {
        let path = match self.probe {
            Probe::Livez => "/livez",
            Probe::Readyz => "/readyz",
            Probe::Startupz => "/startupz",
        };
        let until = clock::now() + self.wait;
        while clock::now() < until {
            // It may not even listen yet.
            if matches!(call(&self.admin, "GET", path, Some(PATIENCE)), Ok((200, _))) {
                return Outcome::Fine;
            }
            if let Err(outcome) = pause(ASK_EVERY) {
                return outcome;
            }
        }
        match ask(&self.admin, "GET", path) {
            Some((200, _)) => Outcome::Fine,
            Some((_, body)) => {
                complain(&body);
                Outcome::No
            }
            None => Outcome::No,
        }
    }
}

/// Waits between two looks.
pub(super) fn pause(long: Duration) -> Result<(), Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|error| {
            complain(&format!("outrigger: {error}"));
            Outcome::Bug
        })?;
    runtime.block_on(clock::sleep(long));
    Ok(())
}

/// Says in plain words why a request got what it got.
pub(super) fn explain(admin: &Admin, request: &str) -> Outcome {
    if request.is_empty() || request.bytes().any(|byte| byte.is_ascii_control()) {
        complain(&format!(
            "`{request}` is not the id of a request: write what stands in `x-request-id`"
        ));
        return Outcome::Usage;
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
    let Some((_, body)) = ask(
        admin,
        "GET",
        &format!("/api/v1/decisions?request={encoded}"),
    ) else {
        return Outcome::Unavailable;
    };
    let found: Value = serde_json::from_str(&body).unwrap_or_default();
    let found = found.as_array().map(Vec::as_slice).unwrap_or_default();
    if found.is_empty() {
        complain(&format!(
            "nothing is known of the request {request}: nothing had to be decided about it, or too many came after it; the access log has a line of each"
        ));
        return Outcome::No;
    }
    found.iter().for_each(|decided| say(&in_words(decided)));
    Outcome::Fine
}

fn in_words(decided: &Value) -> String {
    let text = |key: &str| decided[key].as_str().unwrap_or_default();
    let who = match text("reason") {
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
            decided["attempts"]
        ),
    ];
    for step in decided["steps"].as_array().into_iter().flatten() {
        lines.push(format!(
            "  {:>9.1} ms  {}",
            step["after_ms"].as_f64().unwrap_or_default(),
            step["text"].as_str().unwrap_or_default()
        ));
    }
    let took = decided["duration_ms"].as_f64().unwrap_or_default();
    lines.push(match decided["status"].as_u64() {
        None | Some(0) => format!("  {took:>9.1} ms  not answered: {}", text("reason")),
        Some(status) => format!("  {took:>9.1} ms  answered with {status} {who}"),
    });
    lines.join("\n")
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}

/// Asks, and prints the answer.
fn show(admin: &Admin, method: &str, path: &str) -> Outcome {
    let Some((status, body)) = ask(admin, method, path) else {
        return Outcome::Unavailable;
    };
    let text = serde_json::from_str::<Value>(&body).map_or(body, |value| format!("{value:#}"));
    match status {
        200..=299 => {
            say(&text);
            Outcome::Fine
        }
        _ => refused(status, &text),
    }
}

/// Passes a refusal on.
pub(super) fn refused(status: u16, text: &str) -> Outcome {
    complain(text);
    match status {
        422 => Outcome::PolicyRefused,
        503 => Outcome::Unavailable,
        _ => Outcome::Usage,
    }
}

/// Asks, and complains if there is no answer.
pub(super) fn ask(admin: &Admin, method: &str, path: &str) -> Option<(u16, String)> {
    call(admin, method, path, Some(PATIENCE))
        .map_err(|error| {
            complain(&format!(
                "no sidecar answers at {}: {error}; name another address with --admin",
                admin.admin
            ))
        })
        .ok()
}

/// One HTTP/1.1 call; the admin server speaks nothing else, and its answers are small.
pub(super) fn call(
    admin: &Admin,
    method: &str,
    path: &str,
    patience: Option<Duration>,
) -> io::Result<(u16, String)> {
    let token = admin
        .admin_token_file
        .as_ref()
        .map(read_token)
        .transpose()
        .map_err(io::Error::other)?;
    let authorization = token
        .map(|token| format!("authorization: Bearer {token}\r\n"))
        .unwrap_or_default();
    let mut stream = TcpStream::connect_timeout(&admin.admin, Duration::from_secs(2))?;
    stream.set_read_timeout(patience)?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-length: 0\r\n{authorization}\r\n",
        admin.admin
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or(io::ErrorKind::InvalidData)?;
    Ok((status, body.to_owned()))
}
