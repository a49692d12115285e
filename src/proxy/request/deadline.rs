//! The deadline of a request, and the time left that a backend receives.
//!
//! The deadline is the earliest of these limits:
//!
//! - the request timeout of the policy, for the response head. It starts when the client has
//!   sent the whole request, because a slow client is not the fault of the backend.
//! - the client's own limit for the response head (`x-outrigger-deadline-ms`), which a sidecar
//!   sends to the next one. It starts at the same moment.
//! - the client's limit for a whole gRPC call (`grpc-timeout`). It starts when the request head
//!   arrives.
//!
//! The time left is forwarded in two separate headers. An app that takes the time until the
//! response head for that of the call would end its streams early
//! (`docs/decisions/0009-deadlines.md`). The module does not wait and does not cancel; attempts
//! do.

use std::time::{Duration, Instant};

use crate::{
    proxy::{
        request::view::RequestView,
        wire::header_names::{DEADLINE, GRPC_TIMEOUT},
    },
    resilience::instants::earliest,
};

/// Difference up to which two timeouts count as equal, or a twentieth of the client's time if
/// that is longer.
const CLIENT_DEADLINE_MARGIN: Duration = Duration::from_millis(50);

/// Limits of one request, and the deadline that follows from them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    /// Request timeout of the policy; `None` is unlimited.
    policy_timeout: Option<Duration>,
    /// Earliest of the limits that have started; `None` while there is none.
    expires_at: Option<Instant>,
    /// Time at which the policy timeout started: the client had sent the whole request. For a
    /// fallback it is the start of its attempts.
    started_at: Option<Instant>,
    /// Time that the client waits for the response head after it has sent the whole request.
    client_timeout: Option<Duration>,
    /// Time until which the client itself waits for the response head.
    client_deadline: Option<Instant>,
    /// Time until which the client waits for the end of its gRPC call.
    call_deadline: Option<Instant>,
}

/// Time left for an attempt, as the backend receives it in headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimeLeft {
    /// Time left for the response head; `None` is unlimited.
    pub(crate) response_head: Option<Duration>,
    /// Time left for the whole gRPC call; `None` if the client set no limit.
    pub(crate) call: Option<Duration>,
}

impl Deadline {
    /// Creates the deadline of a request that arrived at `now`. The policy timeout has not
    /// started yet.
    pub(crate) fn new(
        policy_timeout: Option<Duration>,
        request: &RequestView<'_>,
        now: Instant,
    ) -> Self {
        let call_deadline = request
            .header_str(GRPC_TIMEOUT)
            .filter(|_| request.is_grpc)
            .and_then(parse_grpc_timeout)
            .and_then(|wait| now.checked_add(wait));
        let client_timeout = request.header_str(DEADLINE).and_then(parse_millis);
        // The client no longer waits, so the request must not be sent to a backend.
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

    /// Starts the limits, unless they have started already.
    ///
    /// The client's own limit counts from `request_completed_at`, and the policy timeout from
    /// `now`. `now` is later if another backend received the request before.
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

    /// Returns the deadline as far as it is known; `None` if there is no limit so far.
    pub(crate) fn expires_at(&self) -> Option<Instant> {
        self.expires_at
    }

    /// Returns whether the client chose the expired deadline, and the policy would have allowed
    /// clearly more time.
    ///
    /// A preceding sidecar with the same timeouts forwards its time left, which is slightly
    /// shorter than the policy timeout. That difference is within the margin, so it does not
    /// count as the client's choice.
    pub(crate) fn is_client_imposed(
        &self,
        attempt_deadline: Option<Instant>,
        now: Instant,
    ) -> bool {
        let request_deadline = self
            .started_at
            .zip(self.policy_timeout)
            .map(|(started_at, limit)| started_at + limit);
        let policy_deadline = earliest([request_deadline, attempt_deadline]);
        self.client_deadline.is_some_and(|client_deadline| {
            let client_time = client_deadline
                .saturating_duration_since(self.started_at.unwrap_or(client_deadline));
            let margin = CLIENT_DEADLINE_MARGIN.max(client_time / 20);
            now >= client_deadline
                && self.expires_at == Some(client_deadline)
                && policy_deadline.is_none_or(|end| end > client_deadline + margin)
        })
    }

    /// Returns the time at which the policy timeout started; `None` while the client still
    /// sends.
    pub(crate) fn started_at(&self) -> Option<Instant> {
        self.started_at
    }

    /// Returns the end of the gRPC call that the client set; `None` if it set none.
    pub(crate) fn call_deadline(&self) -> Option<Instant> {
        self.call_deadline
    }

    /// Returns the time left for one attempt. While the client still sends, the full timeouts
    /// are left.
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

    /// Returns the time until the deadline: zero if it has expired, the maximum if there is
    /// none.
    pub(crate) fn time_left(&self, now: Instant) -> Duration {
        self.expires_at
            .map_or(Duration::MAX, |at| at.saturating_duration_since(now))
    }
}

/// Parses a number of milliseconds. Returns `None` if the text is no number.
fn parse_millis(text: &str) -> Option<Duration> {
    let text = text.trim();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().map_or(Duration::MAX, Duration::from_millis))
}

/// Parses a timeout of up to eight digits and a unit (gRPC over HTTP/2, "Requests").
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

/// Formats a timeout for `grpc-timeout`, with at most eight digits.
///
/// It is rounded down to whole milliseconds, so that a backend does not work longer than the
/// client waits. Microseconds or seconds are used where milliseconds do not fit. The result is
/// never zero.
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
