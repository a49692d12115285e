//! What happened, told once: to the log, to the metrics, and to whoever listens.
//!
//! A mechanism reports an [`event::Event`], and knows neither a metric's name nor a log line. Here is the one place where
//! events become those. Requests, which are many, go through handles that were made when the policy was compiled, and
//! through the access log, which never waits.

pub mod access_log;
pub mod backend_metrics;
pub mod decision;
pub mod decision_log;
pub mod engine_metrics;
pub mod event;
mod event_metrics;
mod event_text;
pub mod label;
pub mod log;
pub mod metric_names;
pub mod metrics;
pub mod reason;
pub mod route_metrics;
pub mod tls_subject;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::broadcast;

use crate::telemetry::{
    access_log::AccessLogWriter, decision_log::DecisionLog, event::Event, metrics::Metrics,
};

/// Events that are remembered for the admin API.
const MAX_RECENT_EVENTS: usize = 256;

/// An event with its number.
#[derive(Debug, Clone)]
pub struct EventRecord {
    /// Counted from 1.
    pub sequence: u64,
    /// The time of day.
    pub emitted_at: std::time::SystemTime,
    /// What happened.
    pub event: Arc<Event>,
}

/// The one place that events are told to.
#[derive(Debug)]
pub struct Telemetry {
    /// The metrics.
    pub metrics: Metrics,
    /// The access log.
    pub access_log: AccessLogWriter,
    /// Why the last requests got what they got.
    pub decision_log: DecisionLog,
    wall_clock: fn() -> std::time::SystemTime,
    subscribers: broadcast::Sender<EventRecord>,
    /// The last events; a lock for a push, never held across anything else.
    recent_events: Mutex<VecDeque<EventRecord>>,
}

impl Telemetry {
    /// Makes a telemetry without listeners; `wall` tells the time of day.
    #[must_use]
    pub fn new(access_log: AccessLogWriter, wall_clock: fn() -> std::time::SystemTime) -> Self {
        let (subscribers, _) = broadcast::channel(MAX_RECENT_EVENTS);
        Self {
            metrics: Metrics::new(),
            access_log,
            decision_log: DecisionLog::default(),
            wall_clock,
            subscribers,
            recent_events: Mutex::new(VecDeque::with_capacity(MAX_RECENT_EVENTS)),
        }
    }

    /// Tells what happened.
    pub fn emit(&self, event: Event) {
        log::write_event(&event);
        event_metrics::record(&self.metrics, &event);
        let mut recent = self
            .recent_events
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let sequence = recent.back().map_or(1, |last| last.sequence + 1);
        let record = EventRecord {
            sequence,
            emitted_at: self.wall_time(),
            event: Arc::new(event),
        };
        if recent.len() == MAX_RECENT_EVENTS {
            recent.pop_front();
        }
        recent.push_back(record.clone());
        drop(recent);
        // Nobody listening is fine.
        _ = self.subscribers.send(record);
    }

    /// The time of day.
    #[must_use]
    pub fn wall_time(&self) -> std::time::SystemTime {
        (self.wall_clock)()
    }

    /// The events from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<EventRecord> {
        self.subscribers.subscribe()
    }

    /// The last events, oldest first.
    #[must_use]
    pub fn recent_events(&self) -> Vec<EventRecord> {
        self.recent_events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .cloned()
            .collect()
    }
}
