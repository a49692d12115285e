//! The only module that reads clocks and creates timers.
//!
//! Decisions receive the time as an argument, so that a test can control it. This module
//! provides that time. `clippy.toml` rejects clock reads and timers elsewhere. The module does
//! not know what the time is used for.

mod timeout;

use std::{
    fmt,
    future::Future,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::clock::timeout::TimeLimit;
pub use crate::clock::timeout::{Elapsed, Timeout};

/// Returns the monotonic time; under a paused tokio clock, the time of that clock.
#[must_use]
pub fn now() -> Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the clock"
    )]
    tokio::time::Instant::now().into_std()
}

/// Returns the wall-clock time, which can jump when the system clock is set.
#[must_use]
pub fn wall_time() -> SystemTime {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the clock"
    )]
    SystemTime::now()
}

/// Waits until `deadline`, or returns at once if it has passed.
pub async fn sleep_until(deadline: Instant) {
    tokio::time::sleep_until(deadline.into()).await;
}

/// Waits for `duration`; under a paused tokio clock, for the time of that clock.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place with timers"
)]
pub async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// Runs a future until `deadline`; `None` sets no limit.
///
/// The result is [`Elapsed`] if the deadline passes first. The future is then dropped.
pub fn timeout_at<F: Future>(deadline: Option<Instant>, future: F) -> Timeout<F> {
    Timeout::new(future, deadline.map(TimeLimit::At))
}

/// Runs a future for at most `limit`; `None` sets no limit.
///
/// The result is [`Elapsed`] if the time passes first. The future is then dropped.
pub fn timeout<F: Future>(limit: Option<Duration>, future: F) -> Timeout<F> {
    Timeout::new(future, limit.map(TimeLimit::After))
}

/// Displays a time as RFC 3339 in UTC with milliseconds, such as `2026-11-18T00:00:00.000Z`.
///
/// A time before 1970 is displayed as the start of 1970.
#[derive(Debug, Clone, Copy)]
pub struct Rfc3339(pub SystemTime);

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since_epoch = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (days, second) = (
            since_epoch.as_secs() / 86_400,
            since_epoch.as_secs() % 86_400,
        );
        let (year, month, day) = civil_from_days(days);
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z",
            since_epoch.subsec_millis()
        )
    }
}

/// Formats times like [`Rfc3339`]. It keeps the text of the last second, because most times
/// differ only in their milliseconds.
#[derive(Debug, Default)]
pub struct TimestampFormatter {
    second: Option<u64>,
    /// Text of the last time.
    text: String,
}

impl TimestampFormatter {
    /// Returns a time as text.
    pub fn format(&mut self, time: SystemTime) -> &str {
        let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        if self.second != Some(since_epoch.as_secs()) {
            self.second = Some(since_epoch.as_secs());
            self.text = Rfc3339(time).to_string();
        }
        let millis = since_epoch.subsec_millis();
        let digits = [millis / 100, millis / 10 % 10, millis % 10];
        self.text.truncate(self.text.len() - "000Z".len());
        self.text
            .extend(digits.map(|digit| char::from_digit(digit, 10).unwrap_or('0')));
        self.text.push('Z');
        &self.text
    }
}

/// Returns the year, month and day of a day that is counted from 1970-01-01.
///
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests;
