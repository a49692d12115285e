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
    resilience::lifecycle::{Drain, Load, Stage, Traffic},
};

/// The field in which an instance says that it is leaving.
pub const MARKER: &str = "x-outrigger-draining";

/// So much longer than a drain can last the callers are asked to stay away: the process may take a moment to end.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long an endpoint is left alone that does not say for how long.
const USUAL_TTL: Duration = Duration::from_secs(30);

/// And at most, whatever it says.
const MAX_TTL: Duration = Duration::from_mins(10);

/// Where this instance is on its way out.
#[derive(Debug)]
pub struct Departure {
    born: Instant,
    inbound: Counts,
    outbound: Counts,
    /// [`Stage`] as a number, to be read by every request.
    stage: AtomicU8,
    stages: watch::Sender<Stage>,
    is_relieved: AtomicBool,
    /// When it has drained in any case, in milliseconds after `born`.
    latest: AtomicU64,
    ended: Notify,
}

/// What is counted of one direction.
#[derive(Debug, Default)]
struct Counts {
    in_flight: AtomicUsize,
    begun: AtomicU64,
    /// When a request last began, in milliseconds after `born`, plus one; 0 is never.
    last_began: AtomicU64,
}

impl Departure {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            born: now,
            inbound: Counts::default(),
            outbound: Counts::default(),
            stage: AtomicU8::new(0),
            stages: watch::Sender::new(Stage::Serving),
            is_relieved: AtomicBool::new(false),
            latest: AtomicU64::new(0),
            ended: Notify::new(),
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
    pub fn is_relieved(&self) -> bool {
        self.is_relieved.load(Ordering::Relaxed)
    }

    /// Whether callers are refused. Never those of an address that stays.
    #[must_use]
    pub fn refuses(&self) -> bool {
        self.stage() >= Stage::Drained && !self.is_relieved()
    }

    /// The stages as they come.
    #[must_use]
    pub fn stages(&self) -> watch::Receiver<Stage> {
        self.stages.subscribe()
    }

    /// Takes note of where a drain is, and wakes who waits for that.
    pub fn follow(&self, drain: &Drain) {
        let stage = drain.stage();
        self.latest
            .store(self.millis(drain.latest()), Ordering::Relaxed);
        self.is_relieved
            .store(drain.is_relieved(), Ordering::Relaxed);
        self.stage.store(stage as u8, Ordering::Relaxed);
        self.stages
            .send_if_modified(|known| std::mem::replace(known, stage) != stage);
    }

    /// What callers are told while it is leaving: to ask elsewhere, and for how long. A process that was relieved tells nothing, for its
    /// successor answers at the same address.
    #[must_use]
    pub fn marker(&self, now: Instant) -> Option<String> {
        if !self.is_draining() || self.is_relieved() {
            return None;
        }
        let left = self
            .latest
            .load(Ordering::Relaxed)
            .saturating_sub(self.millis(now));
        Some(format!(
            "1; ttl={}",
            Duration::from_millis(left)
                .saturating_add(FAREWELL)
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
    pub fn load(&self) -> Load {
        let traffic = |counts: &Counts| Traffic {
            in_flight: counts.in_flight.load(Ordering::Acquire),
            last_began: counts
                .last_began
                .load(Ordering::Acquire)
                .checked_sub(1)
                .map(|millis| self.born + Duration::from_millis(millis)),
        };
        Load {
            inbound: traffic(&self.inbound),
            outbound: traffic(&self.outbound),
        }
    }

    /// Requests of callers that ever began.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.inbound.begun.load(Ordering::Relaxed)
    }

    /// A connection of a client has ended, too.
    pub fn connection_ends(&self) {
        self.ended.notify_waiters();
    }

    /// Is done when a request or a connection ends after this call, whether or not it is waited for yet.
    pub fn something_ends(&self) -> Notified<'_> {
        self.ended.notified()
    }

    fn counts(&self, direction: Direction) -> &Counts {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }

    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.born).as_millis()).unwrap_or(u64::MAX - 1)
    }
}

/// For how long an endpoint that says so in these words wants to be left alone.
#[must_use]
pub fn ttl(marker: &str) -> Option<Duration> {
    let mut parts = marker.split(';').map(str::trim);
    if parts.next() != Some("1") {
        return None;
    }
    let said = parts.find_map(|part| {
        part.strip_prefix("ttl=")?
            .parse()
            .ok()
            .map(Duration::from_secs)
    });
    Some(said.unwrap_or(USUAL_TTL).min(MAX_TTL))
}

/// A request in flight.
#[derive(Debug)]
#[must_use = "a request is in flight as long as its guard lives"]
pub struct InFlight {
    state: Arc<super::State>,
    direction: Direction,
}

impl InFlight {
    /// Counts a request until it is dropped.
    pub fn enter(state: &Arc<super::State>, direction: Direction, now: Instant) -> Self {
        let departure = &state.departure;
        let counts = departure.counts(direction);
        counts.in_flight.fetch_add(1, Ordering::AcqRel);
        counts.begun.fetch_add(1, Ordering::Relaxed);
        // Of two that begin at once either may be the last; they are no millisecond apart.
        counts
            .last_began
            .store(departure.millis(now) + 1, Ordering::Release);
        Self {
            state: state.clone(),
            direction,
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let departure = &self.state.departure;
        departure
            .counts(self.direction)
            .in_flight
            .fetch_sub(1, Ordering::AcqRel);
        departure.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resilience::{lifecycle::DrainConfig, some_instant};

    #[test]
    fn a_marker_is_read_or_is_none() {
        let table = [
            ("1; ttl=30", Some(30)),
            ("1;ttl=7", Some(7)),
            ("1; endpoint=10.0.0.7:80; ttl=120", Some(120)),
            ("1", Some(30)),
            ("1; ttl=soon", Some(30)),
            ("1; ttl=999999", Some(600)),
            ("0; ttl=30", None),
            ("", None),
            ("yes", None),
        ];
        for (text, expected) in table {
            assert_eq!(ttl(text).map(|ttl| ttl.as_secs()), expected, "{text}");
        }
    }

    #[test]
    fn callers_are_asked_to_stay_away_until_it_is_gone_for_sure() {
        let start = some_instant();
        let departure = Departure::new(start);
        assert_eq!(departure.marker(start), None);
        departure.follow(&Drain::begin(DrainConfig::default(), start));
        let after = |seconds| {
            departure
                .marker(start + Duration::from_secs(seconds))
                .unwrap_or_default()
        };
        assert_eq!(
            (after(0), after(24), after(99)),
            (
                "1; ttl=30".to_owned(),
                "1; ttl=6".to_owned(),
                "1; ttl=5".to_owned()
            )
        );
        departure.follow(&Drain::relieved(DrainConfig::default(), start));
        assert_eq!(
            departure.marker(start),
            None,
            "its address does not go away"
        );
    }
}
