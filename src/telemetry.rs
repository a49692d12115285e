//! What happened, told once: to the log, to the metrics, and to whoever listens.
//!
//! A mechanism reports an [`event::Event`], and knows neither a metric's name nor a log line. Here is the one place where
//! events become those. Requests, which are many, go through handles that were made when the policy was compiled, and
//! through the access log, which never waits.

pub mod access_log;
pub mod decisions;
pub mod engine_metrics;
pub mod event;
pub mod log;
pub mod metrics;
pub mod reason;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::broadcast;

use self::{access_log::AccessLog, decisions::Decisions, event::Event, metrics::Metrics};

/// Events that are remembered for the admin API.
const REMEMBERED: usize = 256;

/// An event with its number.
#[derive(Debug, Clone)]
pub struct Numbered {
    /// Counted from 1.
    pub number: u64,
    /// The time of day.
    pub at: std::time::SystemTime,
    /// What happened.
    pub event: Arc<Event>,
}

/// The one place that events are told to.
#[derive(Debug)]
pub struct Telemetry {
    /// The metrics.
    pub metrics: Metrics,
    /// The access log.
    pub access_log: AccessLog,
    /// Why the last requests got what they got.
    pub decisions: Decisions,
    wall: fn() -> std::time::SystemTime,
    listeners: broadcast::Sender<Numbered>,
    /// The last events; a lock for a push, never held across anything else.
    recent: Mutex<VecDeque<Numbered>>,
}

impl Telemetry {
    /// Makes a telemetry without listeners; `wall` tells the time of day.
    #[must_use]
    pub fn new(access_log: AccessLog, wall: fn() -> std::time::SystemTime) -> Self {
        let (listeners, _) = broadcast::channel(REMEMBERED);
        Self {
            metrics: Metrics::new(),
            access_log,
            decisions: Decisions::default(),
            wall,
            listeners,
            recent: Mutex::new(VecDeque::with_capacity(REMEMBERED)),
        }
    }

    /// Tells what happened.
    pub fn emit(&self, event: Event) {
        log::write(&event);
        self.metrics.count(&event);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let number = recent.back().map_or(1, |last| last.number + 1);
        let numbered = Numbered {
            number,
            at: self.wall(),
            event: Arc::new(event),
        };
        if recent.len() == REMEMBERED {
            recent.pop_front();
        }
        recent.push_back(numbered.clone());
        drop(recent);
        // Nobody listening is fine.
        _ = self.listeners.send(numbered);
    }

    /// The time of day.
    #[must_use]
    pub fn wall(&self) -> std::time::SystemTime {
        (self.wall)()
    }

    /// The events from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Numbered> {
        self.listeners.subscribe()
    }

    /// The last events, oldest first.
    #[must_use]
    pub fn recent(&self) -> Vec<Numbered> {
        self.recent
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .cloned()
            .collect()
    }
}
