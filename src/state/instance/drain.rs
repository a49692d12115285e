//! Requests in flight, and the published stage of a drain.
//!
//! The pure [`DrainSequence`] decides the stages, and one control task advances it. This module
//! counts the load that it needs and publishes its stage. Requests read the stage as a number;
//! tasks that wait for a stage use a channel. The module also writes and parses the header that
//! announces a drain to other instances. It does not know listeners, signals or timers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Notify, futures::Notified, watch};

use crate::{
    policy::document::Direction,
    resilience::lifecycle::{DirectionLoad, DrainSequence, InstanceLoad, Stage},
    state::{atomic_instant::AtomicInstant, instance::header_parameters::split_parameters},
};

/// Response header in which an instance announces that it is draining.
pub const DRAINING_HEADER: &str = "x-outrigger-draining";

/// Time added to the remaining drain time in the header. The process may need a moment to end.
const DRAIN_TTL_MARGIN: Duration = Duration::from_secs(5);

/// Time for which an endpoint counts as draining if its header does not state a time.
const DEFAULT_DRAINING_TTL: Duration = Duration::from_secs(30);

/// Maximum time for which an endpoint counts as draining, whatever its header states.
const MAX_DRAINING_TTL: Duration = Duration::from_mins(10);

/// Drain stage of this instance, and its requests in flight.
#[derive(Debug)]
pub struct DrainState {
    inbound: DirectionCounters,
    outbound: DirectionCounters,
    /// [`Stage`] as a number, so that each request reads it without a lock.
    stage: AtomicU8,
    stage_sender: watch::Sender<Stage>,
    is_handed_over: AtomicBool,
    /// Time at which the drain ends in any case; none before a drain.
    deadline: AtomicInstant,
    end_notify: Notify,
}

/// Request counts of one direction.
#[derive(Debug)]
struct DirectionCounters {
    in_flight: AtomicUsize,
    started_total: AtomicU64,
    /// Start of the latest request; none before the first one.
    last_started_at: AtomicInstant,
}

impl DirectionCounters {
    fn new(now: Instant) -> Self {
        Self {
            in_flight: AtomicUsize::new(0),
            started_total: AtomicU64::new(0),
            last_started_at: AtomicInstant::new(now, None),
        }
    }
}

impl DrainState {
    pub(in crate::state) fn new(now: Instant) -> Self {
        Self {
            inbound: DirectionCounters::new(now),
            outbound: DirectionCounters::new(now),
            stage: AtomicU8::new(0),
            stage_sender: watch::Sender::new(Stage::Serving),
            is_handed_over: AtomicBool::new(false),
            deadline: AtomicInstant::new(now, None),
            end_notify: Notify::new(),
        }
    }

    /// Returns the current stage, which is [`Stage::Serving`] before a drain.
    #[must_use]
    pub fn stage(&self) -> Stage {
        Stage::ALL[usize::from(self.stage.load(Ordering::Relaxed))]
    }

    /// Returns whether a drain or a handover has started.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.stage.load(Ordering::Relaxed) != 0
    }

    /// Returns whether a new process has taken over the listening sockets.
    #[must_use]
    pub fn is_handed_over(&self) -> bool {
        self.is_handed_over.load(Ordering::Relaxed)
    }

    /// Returns whether inbound requests are rejected: from [`Stage::Drained`] on.
    ///
    /// After a handover they are never rejected, because the address of the instance stays in
    /// use.
    #[must_use]
    pub fn rejects_requests(&self) -> bool {
        self.stage() >= Stage::Drained && !self.is_handed_over()
    }

    /// Returns a receiver of the stages, which is notified of each change.
    #[must_use]
    pub fn subscribe_stages(&self) -> watch::Receiver<Stage> {
        self.stage_sender.subscribe()
    }

    /// Publishes the stage of a drain, and notifies tasks that wait for a stage.
    pub fn publish(&self, drain: &DrainSequence) {
        let stage = drain.stage();
        self.deadline.store(drain.deadline());
        self.is_handed_over
            .store(drain.is_handed_over(), Ordering::Relaxed);
        self.stage.store(stage as u8, Ordering::Relaxed);
        self.stage_sender
            .send_if_modified(|published| std::mem::replace(published, stage) != stage);
    }

    /// Returns the value of [`DRAINING_HEADER`], or `None` if the header is not sent.
    ///
    /// The header asks clients to use other instances, and states for how many seconds. After a
    /// handover it is not sent, because a successor responds at the same address.
    #[must_use]
    pub fn draining_header(&self, now: impl FnOnce() -> Instant) -> Option<String> {
        if !self.is_draining() || self.is_handed_over() {
            return None;
        }
        let remaining = self.deadline.load().map_or(Duration::ZERO, |deadline| {
            deadline.saturating_duration_since(now())
        });
        Some(format!(
            "1; ttl={}",
            remaining
                .saturating_add(DRAIN_TTL_MARGIN)
                .as_secs_f64()
                .ceil()
        ))
    }

    /// Returns the number of requests in flight in both directions.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.inbound.in_flight.load(Ordering::Acquire)
            + self.outbound.in_flight.load(Ordering::Acquire)
    }

    /// Returns the current load of both directions, as input of a [`DrainSequence`].
    #[must_use]
    pub fn instance_load(&self) -> InstanceLoad {
        let direction_load = |counters: &DirectionCounters| DirectionLoad {
            in_flight: counters.in_flight.load(Ordering::Acquire),
            last_started_at: counters.last_started_at.load(),
        };
        InstanceLoad {
            inbound: direction_load(&self.inbound),
            outbound: direction_load(&self.outbound),
        }
    }

    /// Returns the number of inbound requests since the start of the process.
    #[must_use]
    pub fn inbound_requests_started(&self) -> u64 {
        self.inbound.started_total.load(Ordering::Relaxed)
    }

    /// Notifies waiting tasks that a client connection has ended.
    pub fn record_connection_end(&self) {
        self.end_notify.notify_waiters();
    }

    /// Returns a future that completes when the next request or connection ends.
    ///
    /// An end between this call and the first poll completes it as well. A caller can therefore
    /// read the load in between.
    pub fn next_request_or_connection_end(&self) -> Notified<'_> {
        self.end_notify.notified()
    }

    fn counters(&self, direction: Direction) -> &DirectionCounters {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }
}

/// Parses a [`DRAINING_HEADER`] value, and returns for how long the endpoint is draining.
///
/// Returns `None` if the value does not announce a drain. A missing or invalid time counts as
/// 30 seconds, and the maximum is 10 minutes.
#[must_use]
pub fn parse_draining_ttl(header_value: &str) -> Option<Duration> {
    let (value, parameters) = split_parameters(header_value);
    if value != "1" {
        return None;
    }
    let requested_ttl = parameters
        .filter(|(name, _)| *name == "ttl")
        .find_map(|(_, seconds)| seconds.parse().ok().map(Duration::from_secs));
    Some(
        requested_ttl
            .unwrap_or(DEFAULT_DRAINING_TTL)
            .min(MAX_DRAINING_TTL),
    )
}

/// Request in flight, which is counted until this guard is dropped.
#[derive(Debug)]
#[must_use = "a request is in flight as long as its guard lives"]
pub struct InFlightGuard {
    drain: Arc<DrainState>,
    direction: Direction,
}

impl InFlightGuard {
    /// Counts a request in flight until the returned guard is dropped.
    pub fn start(drain: &Arc<DrainState>, direction: Direction, now: Instant) -> Self {
        let counters = drain.counters(direction);
        counters.in_flight.fetch_add(1, Ordering::AcqRel);
        counters.started_total.fetch_add(1, Ordering::Relaxed);
        // If two requests start at once, either store may be the last. Their times differ by
        // less than a millisecond.
        counters.last_started_at.store(now);
        Self {
            drain: drain.clone(),
            direction,
        }
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.drain
            .counters(self.direction)
            .in_flight
            .fetch_sub(1, Ordering::AcqRel);
        self.drain.end_notify.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
