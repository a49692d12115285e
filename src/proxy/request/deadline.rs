//! The time that a request has.
//!
//! It begins when the client has sent all of it: how long a client takes is not the backend's fault. A client may itself say how long it
//! will wait: for the head of the answer (`x-outrigger-deadline-ms`, which a sidecar says to the next), counted from the same moment; or for
//! the whole call (`grpc-timeout`), counted from when it began. What is left of each goes on under its own name: an app that takes the time until the head
//! for that of the call would end its streams early (docs/decisions/0009).

use std::time::{Duration, Instant};

use crate::{
    proxy::{
        request::view::RequestView,
        wire::header_names::{DEADLINE, GRPC_TIMEOUT},
    },
    resilience::instants::earliest,
};

/// What two limits that are meant to be the same differ by at most, or a twentieth of them.
const CLIENT_DEADLINE_MARGIN: Duration = Duration::from_millis(50);

/// The time that a request has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    policy_timeout: Option<Duration>,
    expires_at: Option<Instant>,
    /// When the client had sent all of its request.
    started_at: Option<Instant>,
    /// How long the client itself waits for the head, once it has sent all.
    client_timeout: Option<Duration>,
    /// Until when the client itself waits for the head.
    client_deadline: Option<Instant>,
    /// Until when it waits for the end of the call.
    call_deadline: Option<Instant>,
}

/// What is left, as the next one is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimeLeft {
    /// For the head of the answer.
    pub(crate) response_head: Option<Duration>,
    /// For the whole call of gRPC, if its client gave it an end.
    pub(crate) call: Option<Duration>,
}

impl Deadline {
    /// A request that came in at `now`, under the limit of its policy.
    pub(crate) fn new(
        policy_timeout: Option<Duration>,
        request: &RequestView<'_>,
        now: Instant,
    ) -> Self {
        let call_deadline = request
            .header_str(&GRPC_TIMEOUT)
            .filter(|_| request.is_grpc)
            .and_then(parse_grpc_timeout)
            .and_then(|wait| now.checked_add(wait));
        let client_timeout = request.header_str(&DEADLINE).and_then(parse_millis);
        // Nobody waits for what has no time from the beginning.
        let client_deadline = if client_timeout == Some(Duration::ZERO) {
            Some(now)
        } else {
            call_deadline
        };
        Self {
            policy_timeout,
            expires_at: client_deadline,
            started_at: None,
            client_timeout,
            client_deadline,
            call_deadline,
        }
    }

    /// Begins, unless it has begun: the client has sent all of its request, and its own time runs from then; that of the policy from `now`, which is later if
    /// another backend was asked before.
    pub(crate) fn start(&mut self, request_completed_at: Instant, now: Instant) {
        if self.started_at.is_none() {
            self.started_at = Some(now);
            let client_timeout = self
                .client_timeout
                .and_then(|client_timeout| request_completed_at.checked_add(client_timeout));
            self.client_deadline = earliest([self.call_deadline, client_timeout]);
            let policy_deadline = self.policy_timeout.map(|limit| now + limit);
            self.expires_at = earliest([self.client_deadline, policy_deadline]);
        }
    }

    /// When it is over, as far as that is known.
    pub(crate) fn expires_at(&self) -> Option<Instant> {
        self.expires_at
    }

    /// Whether what is over is the time of the client's own choice, which the policy would have allowed clearly more of. A sidecar before this one with the same
    /// limits tells what is left of them; that is no choice of anybody's.
    pub(crate) fn is_client_imposed(
        &self,
        attempt_deadline: Option<Instant>,
        now: Instant,
    ) -> bool {
        let policy_deadline = self
            .started_at
            .zip(self.policy_timeout)
            .map(|(started_at, limit)| started_at + limit)
            .into_iter()
            .chain(attempt_deadline)
            .min();
        self.client_deadline.is_some_and(|client_deadline| {
            let client_time = client_deadline
                .saturating_duration_since(self.started_at.unwrap_or(client_deadline));
            let margin = CLIENT_DEADLINE_MARGIN.max(client_time / 20);
            now >= client_deadline
                && self.expires_at == Some(client_deadline)
                && policy_deadline.is_none_or(|end| end > client_deadline + margin)
        })
    }

    /// When the client had sent all of its request.
    pub(crate) fn started_at(&self) -> Option<Instant> {
        self.started_at
    }

    /// Until when the client waits for the end of its call, if it has said so.
    pub(crate) fn call_deadline(&self) -> Option<Instant> {
        self.call_deadline
    }

    /// What is left for one attempt under this limit, as the backend is told. While a request is still coming in nothing has passed of it.
    pub(crate) fn time_left_for_backend(
        &self,
        attempt_timeout: Option<Duration>,
        now: Instant,
    ) -> TimeLeft {
        let remaining = |at: Instant| at.saturating_duration_since(now);
        let unstarted_timeouts = [self.policy_timeout, self.client_timeout]
            .map(|limit| limit.filter(|_| self.started_at.is_none()));
        let [policy_timeout, client_timeout] = unstarted_timeouts;
        let response_head = earliest([
            policy_timeout,
            client_timeout,
            self.expires_at.map(remaining),
            attempt_timeout,
        ]);
        TimeLeft {
            response_head,
            call: self.call_deadline.map(remaining),
        }
    }

    pub(crate) fn time_left(&self, now: Instant) -> Duration {
        self.expires_at
            .map_or(Duration::MAX, |at| at.saturating_duration_since(now))
    }
}

/// Reads a number of milliseconds; what is none says nothing.
fn parse_millis(text: &str) -> Option<Duration> {
    let text = text.trim();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().map_or(Duration::MAX, Duration::from_millis))
}

/// Reads a timeout: up to eight digits and a unit (gRPC over HTTP/2, "Requests").
fn parse_grpc_timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if number.is_empty() || number.len() > 8 || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3_600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// Writes a timeout in whole milliseconds, rounded down, so that nobody waits longer than the caller does; or in the next unit that has
/// room for it.
pub(crate) fn format_grpc_timeout(left: Duration) -> String {
    const MAX: u128 = 99_999_999;
    let millis = left.as_millis();
    match millis {
        0 => format!("{}u", left.as_micros().max(1)),
        1..=MAX => format!("{millis}m"),
        _ => format!("{}S", u128::from(left.as_secs()).min(MAX)),
    }
}

#[cfg(test)]
mod tests;
