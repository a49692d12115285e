//! What is in flight, and how far this instance is on its way out.
//!
//! The drain itself is a pure machine ([`Drain`]) that one background task asks. Here is what it is asked with, and where its answer
//! stands for everybody else to read: a number for requests, a channel for who waits for the next stage.

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
};

/// The field in which an instance says that it is leaving.
pub const DRAINING_HEADER: &str = "x-outrigger-draining";

/// So much longer than a drain can last the callers are asked to stay away: the process may take a moment to end.
const DRAIN_TTL_MARGIN: Duration = Duration::from_secs(5);

/// How long an endpoint is left alone that does not say for how long.
const DEFAULT_DRAINING_TTL: Duration = Duration::from_secs(30);

/// And at most, whatever it says.
const MAX_DRAINING_TTL: Duration = Duration::from_mins(10);

/// Where this instance is on its way out.
#[derive(Debug)]
pub struct DrainState {
    created_at: Instant,
    inbound: DirectionCounters,
    outbound: DirectionCounters,
    /// [`Stage`] as a number, to be read by every request.
    stage: AtomicU8,
    stage_sender: watch::Sender<Stage>,
    is_handed_over: AtomicBool,
    /// When it has drained in any case, in milliseconds after `born`.
    deadline_millis: AtomicU64,
    end_notify: Notify,
}

/// What is counted of one direction.
#[derive(Debug, Default)]
struct DirectionCounters {
    in_flight: AtomicUsize,
    started_total: AtomicU64,
    /// When a request last began, in milliseconds after `born`, plus one; 0 is never.
    last_started_millis: AtomicU64,
}

impl DrainState {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            created_at: now,
            inbound: DirectionCounters::default(),
            outbound: DirectionCounters::default(),
            stage: AtomicU8::new(0),
            stage_sender: watch::Sender::new(Stage::Serving),
            is_handed_over: AtomicBool::new(false),
            deadline_millis: AtomicU64::new(0),
            end_notify: Notify::new(),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn stage(&self) -> Stage {
        Stage::ALL[usize::from(self.stage.load(Ordering::Relaxed))]
    }

    /// Whether it is leaving.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.stage.load(Ordering::Relaxed) != 0
    }

    /// Whether another process has taken its sockets over.
    #[must_use]
    pub fn is_handed_over(&self) -> bool {
        self.is_handed_over.load(Ordering::Relaxed)
    }

    /// Whether callers are refused. Never those of an address that stays.
    #[must_use]
    pub fn rejects_requests(&self) -> bool {
        self.stage() >= Stage::Drained && !self.is_handed_over()
    }

    /// The stages as they come.
    #[must_use]
    pub fn subscribe_stages(&self) -> watch::Receiver<Stage> {
        self.stage_sender.subscribe()
    }

    /// Takes note of where a drain is, and wakes who waits for that.
    pub fn publish(&self, drain: &DrainSequence) {
        let stage = drain.stage();
        self.deadline_millis.store(
            self.millis_since_creation(drain.deadline()),
            Ordering::Relaxed,
        );
        self.is_handed_over
            .store(drain.is_handed_over(), Ordering::Relaxed);
        self.stage.store(stage as u8, Ordering::Relaxed);
        self.stage_sender
            .send_if_modified(|published| std::mem::replace(published, stage) != stage);
    }

    /// What callers are told while it is leaving: to ask elsewhere, and for how long. A process that was relieved tells nothing, for its
    /// successor answers at the same address.
    #[must_use]
    pub fn draining_header(&self, now: Instant) -> Option<String> {
        if !self.is_draining() || self.is_handed_over() {
            return None;
        }
        let remaining_millis = self
            .deadline_millis
            .load(Ordering::Relaxed)
            .saturating_sub(self.millis_since_creation(now));
        Some(format!(
            "1; ttl={}",
            Duration::from_millis(remaining_millis)
                .saturating_add(DRAIN_TTL_MARGIN)
                .as_secs_f64()
                .ceil()
        ))
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.inbound.in_flight.load(Ordering::Acquire)
            + self.outbound.in_flight.load(Ordering::Acquire)
    }

    /// What goes on now.
    #[must_use]
    pub fn instance_load(&self) -> InstanceLoad {
        let direction_load = |counters: &DirectionCounters| DirectionLoad {
            in_flight: counters.in_flight.load(Ordering::Acquire),
            last_started_at: counters
                .last_started_millis
                .load(Ordering::Acquire)
                .checked_sub(1)
                .map(|millis| self.created_at + Duration::from_millis(millis)),
        };
        InstanceLoad {
            inbound: direction_load(&self.inbound),
            outbound: direction_load(&self.outbound),
        }
    }

    /// Requests of callers that ever began.
    #[must_use]
    pub fn inbound_requests_started(&self) -> u64 {
        self.inbound.started_total.load(Ordering::Relaxed)
    }

    /// A connection of a client has ended, too.
    pub fn record_connection_end(&self) {
        self.end_notify.notify_waiters();
    }

    /// Is done when a request or a connection ends after this call, whether or not it is waited for yet.
    pub fn next_request_or_connection_end(&self) -> Notified<'_> {
        self.end_notify.notified()
    }

    fn counters(&self, direction: Direction) -> &DirectionCounters {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }

    fn millis_since_creation(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.created_at).as_millis())
            .unwrap_or(u64::MAX - 1)
    }
}

/// For how long an endpoint that says so in these words wants to be left alone.
#[must_use]
pub fn parse_draining_ttl(header_value: &str) -> Option<Duration> {
    let mut parameters = header_value.split(';').map(str::trim);
    if parameters.next() != Some("1") {
        return None;
    }
    let requested_ttl = parameters.find_map(|parameter| {
        parameter
            .strip_prefix("ttl=")?
            .parse()
            .ok()
            .map(Duration::from_secs)
    });
    Some(
        requested_ttl
            .unwrap_or(DEFAULT_DRAINING_TTL)
            .min(MAX_DRAINING_TTL),
    )
}

/// A request in flight.
#[derive(Debug)]
#[must_use = "a request is in flight as long as its guard lives"]
pub struct InFlightGuard {
    state: Arc<crate::state::State>,
    direction: Direction,
}

impl InFlightGuard {
    /// Counts a request until it is dropped.
    pub fn start(state: &Arc<crate::state::State>, direction: Direction, now: Instant) -> Self {
        let drain = &state.drain;
        let counters = drain.counters(direction);
        counters.in_flight.fetch_add(1, Ordering::AcqRel);
        counters.started_total.fetch_add(1, Ordering::Relaxed);
        // Of two that begin at once either may be the last; they are no millisecond apart.
        counters
            .last_started_millis
            .store(drain.millis_since_creation(now) + 1, Ordering::Release);
        Self {
            state: state.clone(),
            direction,
        }
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        let drain = &self.state.drain;
        drain
            .counters(self.direction)
            .in_flight
            .fetch_sub(1, Ordering::AcqRel);
        drain.end_notify.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
