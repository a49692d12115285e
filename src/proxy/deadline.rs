//! The time that a request has.
//!
//! It begins when the client has sent all of it: how long a client takes is not the backend's fault. A client may itself say how long it
//! will wait: for the head of the answer (`x-outrigger-deadline-ms`, which a sidecar says to the next), counted from the same moment; or for
//! the whole call (`grpc-timeout`), counted from when it began. What is left of each goes on under its own name: an app that takes the time until the head
//! for that of the call would end its streams early (docs/decisions/0009).

use std::time::{Duration, Instant};

use super::{
    asked::Asked,
    headers::{DEADLINE, GRPC_TIMEOUT},
};

/// What two limits that are meant to be the same differ by at most, or a twentieth of them.
const MARGIN: Duration = Duration::from_millis(50);

/// The time that a request has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    limit: Option<Duration>,
    at: Option<Instant>,
    /// When the client had sent all of its request.
    began: Option<Instant>,
    /// How long the client itself waits for the head, once it has sent all.
    told: Option<Duration>,
    /// Until when the client itself waits for the head.
    of_client: Option<Instant>,
    /// Until when it waits for the end of the call.
    of_call: Option<Instant>,
}

/// What is left, as the next one is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TimeLeft {
    /// For the head of the answer.
    pub(super) until_head: Option<Duration>,
    /// For the whole call of gRPC, if its client gave it an end.
    pub(super) of_call: Option<Duration>,
}

impl Deadline {
    /// A request that came in at `now`, under the limit of its policy.
    pub(super) fn new(limit: Option<Duration>, asked: &Asked<'_>, now: Instant) -> Self {
        let of_call = asked
            .text(&GRPC_TIMEOUT)
            .filter(|_| asked.is_grpc)
            .and_then(grpc_timeout)
            .and_then(|wait| now.checked_add(wait));
        let told = asked.text(&DEADLINE).and_then(whole_millis);
        // Nobody waits for what has no time from the beginning.
        let of_client = if told == Some(Duration::ZERO) {
            Some(now)
        } else {
            of_call
        };
        Self {
            limit,
            at: of_client,
            began: None,
            told,
            of_client,
            of_call,
        }
    }

    /// Begins, unless it has begun: the client has sent all of its request, and its own time runs from then; that of the policy from `now`, which is later if
    /// another backend was asked before.
    pub(super) fn begin(&mut self, complete: Instant, now: Instant) {
        if self.began.is_none() {
            self.began = Some(now);
            let told = self.told.and_then(|told| complete.checked_add(told));
            self.of_client = [self.of_call, told].into_iter().flatten().min();
            let of_policy = self.limit.map(|limit| now + limit);
            self.at = [self.of_client, of_policy].into_iter().flatten().min();
        }
    }

    /// When it is over, as far as that is known.
    pub(super) fn at(&self) -> Option<Instant> {
        self.at
    }

    /// Whether what is over is the time of the client's own choice, which the policy would have allowed clearly more of. A sidecar before this one with the same
    /// limits tells what is left of them; that is no choice of anybody's.
    pub(super) fn is_clients_own(&self, of_attempt: Option<Instant>, now: Instant) -> bool {
        let of_policy = self
            .began
            .zip(self.limit)
            .map(|(began, limit)| began + limit)
            .into_iter()
            .chain(of_attempt)
            .min();
        self.of_client.is_some_and(|of_client| {
            let given = of_client.saturating_duration_since(self.began.unwrap_or(of_client));
            let margin = MARGIN.max(given / 20);
            now >= of_client
                && self.at == Some(of_client)
                && of_policy.is_none_or(|end| end > of_client + margin)
        })
    }

    /// When the client had sent all of its request.
    pub(super) fn began(&self) -> Option<Instant> {
        self.began
    }

    /// Until when the client waits for the end of its call, if it has said so.
    pub(super) fn of_call(&self) -> Option<Instant> {
        self.of_call
    }

    /// What is left for one attempt under this limit, as the backend is told. While a request is still coming in nothing has passed of it.
    pub(super) fn for_backend(&self, of_attempt: Option<Duration>, now: Instant) -> TimeLeft {
        let left = |at: Instant| at.saturating_duration_since(now);
        let not_begun = [self.limit, self.told].map(|limit| limit.filter(|_| self.began.is_none()));
        let until_head = not_begun
            .into_iter()
            .chain([self.at.map(left), of_attempt])
            .flatten()
            .min();
        TimeLeft {
            until_head,
            of_call: self.of_call.map(left),
        }
    }

    pub(super) fn time_left(&self, now: Instant) -> Duration {
        self.at
            .map_or(Duration::MAX, |at| at.saturating_duration_since(now))
    }
}

/// Reads a number of milliseconds; what is none says nothing.
fn whole_millis(text: &str) -> Option<Duration> {
    let text = text.trim();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().map_or(Duration::MAX, Duration::from_millis))
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
            assert_eq!(
                grpc_timeout(text),
                nanos.map(Duration::from_nanos),
                "{text}"
            );
        }
    }

    #[test]
    fn a_deadline_is_a_whole_number_of_milliseconds() {
        for (text, millis) in [
            ("250", Some(250)),
            (" 7 ", Some(7)),
            ("0", Some(0)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("1s", None),
            ("soon", None),
        ] {
            assert_eq!(
                whole_millis(text),
                millis.map(Duration::from_millis),
                "{text}"
            );
        }
        assert_eq!(whole_millis("99999999999999999999999"), Some(Duration::MAX));
    }

    #[test]
    fn a_timeout_is_never_written_longer_than_it_is() {
        for (left, expected) in [
            (250_000, "250m"),
            (999, "999u"),
            (0, "1u"),
            (1_500_999, "1500m"),
            (200_000_000_000, "200000S"),
        ] {
            assert_eq!(
                write_grpc_timeout(Duration::from_micros(left)),
                expected,
                "{left} us"
            );
        }
    }
}
