//! Readiness and startup of this instance, with the reasons.
//!
//! The instance is ready while every named condition is met. Each condition has a reason and
//! the time of its last change. The tasks that observe something set the condition; probes read
//! all of them from memory. This module only combines them and does not check anything itself.
//!
//! Some facts are reported without an effect on readiness, such as the state of a dependency.
//! If a shared dependency made instances unready, its failure would take out all pods at once.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use crate::{
    state::instance::instance_age::InstanceAge,
    telemetry::{Telemetry, event::Event},
};

/// Time without a heartbeat after which a worker counts as stuck. A worker sends a heartbeat
/// every second.
const STUCK_WORKER_TIMEOUT: Duration = Duration::from_secs(15);

/// Reason why the instance ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// The instance drained as requested.
    Drained {
        /// Whether no request was interrupted.
        is_clean: bool,
    },
    /// The instance ended without completing a drain, for example after a second termination
    /// signal.
    Immediate,
    /// A part of the instance failed, such as a background task.
    Failed,
}

/// Named condition that readiness requires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadinessCondition {
    /// Name of the condition, as probes show it.
    pub name: String,
    /// Whether the condition permits readiness.
    pub is_met: bool,
    /// Time at which `is_met` last changed.
    pub since: Instant,
    /// Reason for the current state, as probes show it.
    pub reason: String,
}

/// Names of the conditions that every instance has.
pub mod condition {
    /// Met once all listeners of a policy set are bound.
    pub const LISTENERS: &str = "listeners-bound";
    /// Met once a policy set is in force.
    pub const POLICY: &str = "policy-in-force";
    /// Met while the required backend has a healthy endpoint, and always if no backend is
    /// required. At startup it also requires the configured number of passed checks and the
    /// startup delay.
    pub const APP: &str = "app-check-passed";
    /// Met while no backend waits for its first discovery result; a failure counts as a result.
    pub const ENDPOINTS: &str = "endpoints-looked-for";
    /// Met until a drain starts; a handover does not change it.
    pub const NOT_DRAINING: &str = "not-draining";
}

/// Readiness, startup and worker liveness of this instance.
#[derive(Debug)]
pub struct Lifecycle {
    created_at: Instant,
    /// Time since this instance first became ready.
    pub instance_age: InstanceAge,
    /// Notified of each update of a condition, even if nothing changed.
    change_sender: watch::Sender<()>,
    /// Receiver of the event about a change of readiness.
    telemetry: Arc<Telemetry>,
    /// Conditions, reports and counters; the lock covers one access.
    inner: Mutex<LifecycleInner>,
}

#[derive(Debug)]
struct LifecycleInner {
    conditions: BTreeMap<String, ReadinessCondition>,
    was_ready: bool,
    /// Whether policies were in force with all listeners bound at any time so far.
    has_started: bool,
    /// Time of the latest heartbeat, by index of the worker.
    heartbeats: BTreeMap<usize, Instant>,
    /// Time at which the app had passed enough checks; `None` before.
    threshold_reached_at: Option<Instant>,
    registration: Registration,
    listener_connections: BTreeMap<String, Arc<AtomicU32>>,
    policy_current: Result<(), String>,
    /// States that are reported by name and do not affect readiness.
    reports: BTreeMap<String, Result<String, String>>,
}

/// Progress of the startup of the app, which delays readiness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Registration {
    /// The startup is not complete.
    Pending,
    /// The startup is not complete, but it was in a predecessor process. One passed check
    /// completes it.
    Inherited,
    /// The startup is complete and stays so.
    Registered,
}

impl Lifecycle {
    pub(in crate::state) fn new(telemetry: Arc<Telemetry>, now: Instant) -> Self {
        let initial = [
            (condition::LISTENERS, false, "not bound yet"),
            (condition::POLICY, false, "not read yet"),
            (condition::APP, true, "no backend is required"),
            (condition::ENDPOINTS, true, "no backend uses discovery"),
            (condition::NOT_DRAINING, true, "serving"),
        ];
        let conditions = initial.map(|(name, is_met, reason)| {
            (
                name.to_owned(),
                ReadinessCondition {
                    name: name.to_owned(),
                    is_met,
                    since: now,
                    reason: reason.to_owned(),
                },
            )
        });
        Self {
            created_at: now,
            instance_age: InstanceAge::new(now),
            change_sender: watch::Sender::new(()),
            telemetry,
            inner: Mutex::new(LifecycleInner {
                conditions: conditions.into(),
                was_ready: false,
                has_started: false,
                heartbeats: BTreeMap::new(),
                threshold_reached_at: None,
                registration: Registration::Pending,
                listener_connections: BTreeMap::new(),
                policy_current: Ok(()),
                reports: BTreeMap::new(),
            }),
        }
    }

    /// Returns the time at which this instance started.
    #[must_use]
    pub fn created_at(&self) -> Instant {
        self.created_at
    }

    /// Decides whether the startup of the app is complete.
    ///
    /// The app must be healthy with `threshold` passed checks in a row, and `delay` must elapse
    /// after that. `passes` is the current number of passed checks in a row. A completed
    /// startup stays complete, because it does not depend on the later health of the app.
    ///
    /// # Errors
    /// Returns the time at which the startup will be complete, or `None` if checks are missing.
    pub fn try_register(
        &self,
        passes: u32,
        threshold: u32,
        delay: Duration,
        now: Instant,
    ) -> Result<(), Option<Instant>> {
        let mut inner = self.lock();
        let (threshold, delay) = match inner.registration {
            Registration::Pending => (threshold, delay),
            Registration::Inherited => (1, Duration::ZERO),
            Registration::Registered => return Ok(()),
        };
        if inner.threshold_reached_at.is_none() && passes < threshold {
            return Err(None);
        }
        let ready_at = *inner.threshold_reached_at.get_or_insert(now) + delay;
        if now < ready_at {
            return Err(Some(ready_at));
        }
        inner.registration = Registration::Registered;
        Ok(())
    }

    /// Continues the lifecycle of a predecessor process that was ready for `age`. One passed
    /// check then completes the startup of the app, without a delay.
    pub fn inherit_age(&self, age: Duration) {
        self.lock().registration = Registration::Inherited;
        self.instance_age.inherit_age(age);
    }

    /// Waits until `predicate` holds. It is evaluated now and after each update of a condition.
    pub async fn wait_until(&self, predicate: impl Fn(&Self) -> bool) {
        let mut changes = self.change_sender.subscribe();
        while !predicate(self) {
            // The sender belongs to `self`, which outlives this wait, so `changed` cannot fail.
            _ = changes.changed().await;
        }
    }

    /// Returns whether the named condition exists and is met.
    #[must_use]
    pub fn is_met(&self, name: &str) -> bool {
        self.lock().is_met(name)
    }

    /// Restarts the startup of the app after a failed check. A completed startup is not
    /// affected.
    pub fn reset_registration(&self) {
        self.lock().threshold_reached_at = None;
    }

    /// Records that a worker thread is responsive.
    pub fn record_heartbeat(&self, worker: usize, now: Instant) {
        self.lock().heartbeats.insert(worker, now);
    }

    /// Returns the stuck workers: those without a heartbeat for more than 15 seconds, each with
    /// the time since its last one.
    #[must_use]
    pub fn stuck_workers(&self, now: Instant) -> Vec<(usize, Duration)> {
        let silence_of = |(worker, heartbeat): (&usize, &Instant)| {
            (*worker, now.saturating_duration_since(*heartbeat))
        };
        self.lock()
            .heartbeats
            .iter()
            .map(silence_of)
            .filter(|(_, silence)| *silence > STUCK_WORKER_TIMEOUT)
            .collect()
    }

    /// Returns the counter of client connections of a listener, and creates it on first use.
    ///
    /// The data plane compares it with the connection limit of the listener.
    #[must_use]
    pub fn listener_connections(&self, listener: &str) -> Arc<AtomicU32> {
        self.lock()
            .listener_connections
            .entry(listener.to_owned())
            .or_default()
            .clone()
    }

    /// Returns the number of client connections of each listener, by name.
    #[must_use]
    pub fn connections(&self) -> Vec<(String, u32)> {
        self.lock()
            .listener_connections
            .iter()
            .map(|(listener, count)| (listener.clone(), count.load(Ordering::Relaxed)))
            .collect()
    }

    /// Sets a condition, and emits an event if the readiness of the instance changed.
    pub fn set_condition(&self, name: &str, is_met: bool, reason: impl Into<String>, now: Instant) {
        let mut inner = self.lock();
        let reason = reason.into();
        match inner.conditions.get_mut(name) {
            Some(condition) if condition.is_met == is_met => condition.reason = reason,
            _ => {
                inner.conditions.insert(
                    name.to_owned(),
                    ReadinessCondition {
                        name: name.to_owned(),
                        is_met,
                        since: now,
                        reason,
                    },
                );
            }
        }
        self.publish_change(inner, now);
    }

    /// Removes a condition, and emits an event if the readiness of the instance changed.
    pub fn remove_condition(&self, name: &str, now: Instant) {
        let mut inner = self.lock();
        inner.conditions.remove(name);
        self.publish_change(inner, now);
    }

    /// Records whether the newest policies are in force, or why they were rejected. This does
    /// not affect readiness, because the last valid policies stay in force.
    pub fn set_policy_current(&self, result: Result<(), String>) {
        self.lock().policy_current = result;
    }

    /// Records the state of a dependency, or its fault. A report does not affect readiness,
    /// because one failed dependency would make all pods unready at once.
    pub fn set_report(&self, name: &str, state: Result<String, String>) {
        self.lock().reports.insert(name.to_owned(), state);
    }

    /// Removes the report of a dependency that the policies no longer contain.
    pub fn remove_report(&self, name: &str) {
        self.lock().reports.remove(name);
    }

    /// Returns all reports by name, each with a description or a fault.
    #[must_use]
    pub fn reports(&self) -> Vec<(String, Result<String, String>)> {
        self.lock()
            .reports
            .iter()
            .map(|(name, state)| (name.clone(), state.clone()))
            .collect()
    }

    /// Returns whether the newest policies are in force.
    ///
    /// # Errors
    /// Returns the reason why they were rejected.
    pub fn policy_current(&self) -> Result<(), String> {
        self.lock().policy_current.clone()
    }

    /// Returns all conditions, sorted by name.
    #[must_use]
    pub fn conditions(&self) -> Vec<ReadinessCondition> {
        self.lock().conditions.values().cloned().collect()
    }

    /// Returns whether all conditions are met.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.lock().is_ready()
    }

    /// Returns whether policies were in force with all listeners bound at any time so far.
    #[must_use]
    pub fn has_started(&self) -> bool {
        self.lock().has_started
    }

    fn publish_change(&self, mut inner: MutexGuard<'_, LifecycleInner>, now: Instant) {
        let is_ready = inner.is_ready();
        inner.has_started |= inner.is_met(condition::LISTENERS) && inner.is_met(condition::POLICY);
        self.change_sender.send_replace(());
        if std::mem::replace(&mut inner.was_ready, is_ready) == is_ready {
            return;
        }
        if is_ready && self.instance_age.age(now).is_none() {
            self.instance_age
                .mark_ready(now, self.telemetry.wall_time());
        }
        let unmet = inner
            .conditions
            .values()
            .filter(|condition| !condition.is_met)
            .map(|condition| format!("{}: {}", condition.name, condition.reason))
            .collect();
        drop(inner);
        self.telemetry
            .emit(Event::ReadinessChanged { is_ready, unmet });
    }

    fn lock(&self) -> MutexGuard<'_, LifecycleInner> {
        self.inner.lock()
    }
}

impl LifecycleInner {
    fn is_ready(&self) -> bool {
        self.conditions.values().all(|condition| condition.is_met)
    }

    fn is_met(&self, name: &str) -> bool {
        self.conditions
            .get(name)
            .is_some_and(|condition| condition.is_met)
    }
}
