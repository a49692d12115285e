//! The time that a request has.
//!
//! It begins when the client has sent all of it: how long a client takes is not the backend's fault. A client of gRPC says itself how
//! long it will wait (`grpc-timeout`), and counts from when it began.

use std::time::{Duration, Instant};

use super::client::Client;

/// The time that a request has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    limit: Option<Duration>,
    at: Option<Instant>,
    /// When the client had sent all of its request.
    began: Option<Instant>,
    /// Until when the client itself waits.
    of_client: Option<Instant>,
}

impl Deadline {
    /// A request that came in at `now`, under the limit of its policy.
    pub(super) fn new(limit: Option<Duration>, client: &Client, now: Instant) -> Self {
        let of_client = client.text(&super::headers::GRPC_TIMEOUT).filter(|_| client.is_grpc()).and_then(grpc_timeout).and_then(|wait| now.checked_add(wait));
        Self { limit, at: of_client, began: None, of_client }
    }

    /// Begins, unless it has begun: the client has sent all of its request.
    pub(super) fn begin(&mut self, now: Instant) {
        if self.began.is_none() {
            self.began = Some(now);
            let of_policy = self.limit.map(|limit| now + limit);
            self.at = [self.of_client, of_policy].into_iter().flatten().min();
        }
    }

    /// When it is over, as far as that is known.
    pub(super) fn at(&self) -> Option<Instant> {
        self.at
    }

    /// Whether what is over is the time of the client's own choice, which the policy would have allowed more of.
    pub(super) fn is_clients_own(&self, now: Instant) -> bool {
        self.of_client.is_some_and(|of_client| now >= of_client && self.at == Some(of_client))
    }

    /// When the client had sent all of its request.
    pub(super) fn began(&self) -> Option<Instant> {
        self.began
    }

    /// Until when the client itself waits, if it has said so.
    pub(super) fn of_client(&self) -> Option<Instant> {
        self.of_client
    }

    /// What is left for the backend, as it is told: of a request that is still coming in, at most the policy's limit.
    pub(super) fn for_backend(&self, now: Instant) -> Option<Duration> {
        let left = self.at.map(|at| at.saturating_duration_since(now));
        let limit = self.limit.filter(|_| self.began.is_none());
        [left, limit].into_iter().flatten().min()
    }

    pub(super) fn time_left(&self, now: Instant) -> Duration {
        self.at.map_or(Duration::MAX, |at| at.saturating_duration_since(now))
    }
}

/// Reads a timeout: up to eight digits and a unit (gRPC over HTTP/2, "Requests").
fn grpc_timeout(text: &str) -> Option<Duration> {
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
pub(super) fn write_grpc_timeout(left: Duration) -> String {
    const MAX: u128 = 99_999_999;
    let millis = left.as_millis();
    match millis {
        0 => format!("{}u", left.as_micros().max(1)),
        1..=MAX => format!("{millis}m"),
        _ => format!("{}S", u128::from(left.as_secs()).min(MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_of_grpc_are_read_in_every_unit() {
        let table = [
            ("1H", Some(3_600_000_000_000)),
            ("2M", Some(120_000_000_000)),
            ("3S", Some(3_000_000_000)),
            ("250m", Some(250_000_000)),
            ("7u", Some(7_000)),
            ("9n", Some(9)),
            ("99999999S", Some(99_999_999_000_000_000)),
            ("100000000S", None),
            ("", None),
            ("S", None),
            ("-1S", None),
            ("1.5S", None),
            ("1s", None),
            ("1é", None),
        ];
        for (text, nanos) in table {
            assert_eq!(grpc_timeout(text), nanos.map(Duration::from_nanos), "{text}");
        }
    }

    #[test]
    fn a_timeout_is_never_written_longer_than_it_is() {
        for (left, expected) in [(250_000, "250m"), (999, "999u"), (0, "1u"), (1_500_999, "1500m"), (200_000_000_000, "200000S")] {
            assert_eq!(write_grpc_timeout(Duration::from_micros(left)), expected, "{left} us");
        }
    }
}
