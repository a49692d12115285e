//! Memory pressure: what is closed and rejected as the memory budget of the process is used up.
//!
//! The level rises at once when its share of the budget is reached. It falls only after memory
//! was released, so that it does not flap. Cheap measures precede expensive ones:
//!
//! | level | from | until below | measures, in addition to those of the lower level |
//! | --- | --- | --- | --- |
//! | elevated | 60 % | 50 % | idle connections close; retained bodies and cached responses go |
//! | high | 75 % | 70 % | new connections wait; stalled connections close |
//! | critical | 90 % | 85 % | HTTP/2 is read slowly; requests are rejected by class |
//!
//! A connection is stalled if it holds memory and makes no progress: an incomplete TLS
//! handshake, request head or request body, or a response that its client does not read. The
//! module does not measure memory and does not close connections.

use std::{cmp::Reverse, time::Duration};

use crate::resilience::shed::PriorityClass;

/// Minimum time without progress after which a connection counts as stalled at the high level.
const STALLED_AFTER: Duration = Duration::from_millis(500);

/// The same at the critical level. Both also apply to idle connections.
const STALLED_AFTER_CRITICAL: Duration = Duration::from_millis(100);

/// Minimum time after which an idle connection closes at the elevated level. A connection whose
/// next request has just arrived is not idle.
const IDLE_AFTER: Duration = Duration::from_secs(1);

/// Part of the candidates that is closed at once, as its denominator. The next selection follows
/// after the released memory was measured.
const CLOSED_FRACTION: usize = 10;

/// Level of memory pressure, in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum MemoryLevel {
    /// There is enough memory.
    #[default]
    Normal,
    /// Memory that serves no request is released.
    Elevated,
    /// Connections that make no progress are closed, and new ones wait.
    High,
    /// Requests are rejected, those of the least important priority class first.
    Critical,
}

impl MemoryLevel {
    /// All levels, in ascending order.
    pub const ALL: [Self; 4] = [Self::Normal, Self::Elevated, Self::High, Self::Critical];

    /// Returns the level that follows, when `used` of `budget` bytes are in use.
    #[must_use]
    pub fn next(self, used: u64, budget: u64) -> Self {
        let share = percent(used, budget);
        let holds = |level: &Self| {
            let (enter, leave) = level.bounds_percent();
            share >= if *level <= self { leave } else { enter }
        };
        let highest = Self::ALL.into_iter().rev().find(holds);
        highest.unwrap_or_default()
    }

    /// Returns the shares of the budget at which the level starts, and below which it ends.
    fn bounds_percent(self) -> (u64, u64) {
        match self {
            Self::Normal => (0, 0),
            Self::Elevated => (60, 50),
            Self::High => (75, 70),
            Self::Critical => (90, 85),
        }
    }
}

/// Returns whether a request of a priority class is rejected, when `used` of `budget` bytes are
/// in use.
///
/// The highest class is never rejected.
#[must_use]
pub fn rejects(class: PriorityClass, used: u64, budget: u64) -> bool {
    let limit = match class {
        PriorityClass::Low => 90,
        PriorityClass::Normal => 93,
        PriorityClass::High => 96,
        PriorityClass::Critical => return false,
    };
    percent(used, budget) >= limit
}

fn percent(used: u64, budget: u64) -> u64 {
    used.saturating_mul(100) / budget.max(1)
}

/// What a connection waits for, if it may be closed to release memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitKind {
    /// The next request; no request is in progress.
    Idle,
    /// The end of the TLS handshake.
    Handshake,
    /// The rest of a request head.
    RequestHead,
    /// The rest of a request body.
    RequestBody,
    /// The client to read the response.
    Response,
    /// The client to send or read something on each of its HTTP/2 streams.
    Streams,
}

impl WaitKind {
    /// All kinds, in the order of declaration.
    pub const ALL: [Self; 6] = [
        Self::Idle,
        Self::Handshake,
        Self::RequestHead,
        Self::RequestBody,
        Self::Response,
        Self::Streams,
    ];
}

/// Connection that may be closed to release memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloseCandidate {
    /// Key by which the caller identifies the connection.
    pub key: usize,
    /// What the connection waits for.
    pub waits_for: WaitKind,
    /// Time for which it has waited without progress.
    pub waited: Duration,
    /// Number of requests that would fail.
    pub requests: u32,
}

/// Selects the connections to close at a level.
///
/// Of the connections that wait for the same, a tenth is selected, at least one. Those with the
/// most requests come first, because each request holds memory, and then those that have waited
/// longest.
#[must_use]
pub fn select_closed(level: MemoryLevel, candidates: &[CloseCandidate]) -> Vec<CloseCandidate> {
    let closed = WaitKind::ALL.into_iter().flat_map(|kind| {
        let min_waited = min_waited(level, kind);
        let closable = candidates.iter().copied().filter(|candidate| {
            candidate.waits_for == kind && min_waited.is_some_and(|min| candidate.waited >= min)
        });
        first_tenth(closable.collect())
    });
    closed.collect()
}

/// Returns the time after which a connection may be closed at a level; `None` for never.
fn min_waited(level: MemoryLevel, waits_for: WaitKind) -> Option<Duration> {
    match (level, waits_for) {
        (MemoryLevel::Normal, _) => None,
        (MemoryLevel::Elevated, WaitKind::Idle) => Some(IDLE_AFTER),
        (MemoryLevel::Elevated, _) => None,
        (MemoryLevel::High, _) => Some(STALLED_AFTER),
        (MemoryLevel::Critical, _) => Some(STALLED_AFTER_CRITICAL),
    }
}

fn first_tenth(mut candidates: Vec<CloseCandidate>) -> Vec<CloseCandidate> {
    candidates.sort_unstable_by_key(|candidate| Reverse((candidate.requests, candidate.waited)));
    candidates.truncate(candidates.len().div_ceil(CLOSED_FRACTION));
    candidates
}

#[cfg(test)]
mod tests;
