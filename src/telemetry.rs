//! Publishes each event to the log, the metrics and the subscribers.
//!
//! This module decides where an event appears. A mechanism reports an [`event::Event`] once, and
//! knows neither a metric name nor a log line. The module does not know why an event occurred.
//!
//! A completed request is not an event, because requests are too frequent. It uses metric handles
//! that are created with the active policy, and the access log, which never blocks.

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
pub mod memory_measure;
pub mod metric_names;
pub mod metrics;
pub mod reason;
pub mod route_metrics;
pub mod tls_subject;

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::broadcast;

use crate::telemetry::{
    access_log::AccessLogWriter, decision_log::DecisionLog, event::Event, metrics::Metrics,
};

/// Maximum number of events that are retained for the admin API. A subscriber may lag by the same
/// number.
const MAX_RECENT_EVENTS: usize = 256;

/// Event with its sequence number and its time.
#[derive(Debug, Clone)]
pub struct EventRecord {
    /// Sequence number within the process, from 1.
    pub sequence: u64,
    /// Wall-clock time at which the event was emitted.
    pub emitted_at: std::time::SystemTime,
    /// Event that occurred, shared by all its records.
    pub event: Arc<Event>,
}

/// Sink for events, metrics, access log entries and decisions.
#[derive(Debug)]
pub struct Telemetry {
    /// Registry that creates the metric handles and renders all metrics.
    pub metrics: Metrics,
    /// Writer of the access log, which may be disabled.
    pub access_log: AccessLogWriter,
    /// Decisions about the latest requests.
    pub decision_log: DecisionLog,
    wall_clock: fn() -> std::time::SystemTime,
    subscribers: broadcast::Sender<EventRecord>,
    /// Latest events, the oldest first. The lock covers one append or one copy.
    recent_events: Mutex<VecDeque<EventRecord>>,
}

impl Telemetry {
    /// Creates telemetry without subscribers. `wall_clock` returns the current wall-clock time.
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

    /// Logs an event, updates the metrics that follow from it, and sends it to all subscribers.
    ///
    /// The event is also retained for [`Telemetry::recent_events`], where it replaces the oldest
    /// one if the list is full. Subscribers can receive concurrent events in an order other than
    /// that of their sequence numbers.
    pub fn emit(&self, event: Event) {
        log::write_event(&event);
        event_metrics::record(&self.metrics, &event);
        let mut recent = self.recent_events.lock();
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
        // An error means that there is no subscriber, which is not a fault.
        _ = self.subscribers.send(record);
    }

    /// Returns the current wall-clock time.
    #[must_use]
    pub fn wall_time(&self) -> std::time::SystemTime {
        (self.wall_clock)()
    }

    /// Returns a receiver of all events that are emitted from now on.
    ///
    /// A receiver that lags by more than 256 events misses the oldest ones.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<EventRecord> {
        self.subscribers.subscribe()
    }

    /// Returns the latest events, the oldest first, at most 256.
    #[must_use]
    pub fn recent_events(&self) -> Vec<EventRecord> {
        self.recent_events.lock().iter().cloned().collect()
    }
}
