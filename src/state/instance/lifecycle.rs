//! Whether this instance is ready, and why not.
//!
//! Readiness is a list of named conditions, each with its state, since when, and why. A probe reads it from memory; whoever
//! learns something sets it here.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    state::instance::instance_age::InstanceAge,
    telemetry::{Telemetry, event::Event},
};

/// A worker beats once a second; one that is silent for so long is stuck.
const STUCK_WORKER_TIMEOUT: Duration = Duration::from_secs(15);

/// Why the instance ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// It drained, and whether nothing was left in flight.
    Drained {
        /// Whether nothing was left.
        is_clean: bool,
    },
    /// It was asked twice, and left at once.
    Immediate,
    /// A part of it failed.
    Failed,
}

/// A named condition of readiness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadinessCondition {
    /// Its name.
    pub name: String,
    /// Whether it is met.
    pub is_met: bool,
    /// Since when it is so.
    pub since: Instant,
    /// Why.
    pub reason: String,
}

/// The conditions that are always there.
pub mod condition {
    /// All listeners of the policy are bound.
    pub const LISTENERS: &str = "listeners-bound";
    /// A set of policies is in force.
    pub const POLICY: &str = "policy-in-force";
    /// The app's check has passed.
    pub const APP: &str = "app-check-passed";
    /// There was an answer about each backend whose endpoints have to be found, be it that there is none.
    pub const ENDPOINTS: &str = "endpoints-looked-for";
    /// The instance is not leaving.
    pub const NOT_DRAINING: &str = "not-draining";
}

/// The life of this instance.
#[derive(Debug)]
pub struct Lifecycle {
    created_at: Instant,
    /// Since when it has been ready.
    pub instance_age: InstanceAge,
    /// Is told whenever a condition was looked at.
    change_sender: watch::Sender<()>,
    /// Guards the conditions.
    inner: Mutex<LifecycleInner>,
}

#[derive(Debug)]
struct LifecycleInner {
    conditions: BTreeMap<String, ReadinessCondition>,
    was_ready: bool,
    has_started: bool,
    heartbeats: BTreeMap<usize, Instant>,
    threshold_reached_at: Option<Instant>,
    registration: Registration,
    listener_connections: BTreeMap<String, Arc<AtomicU32>>,
    policy_current: Result<(), String>,
    /// What is reported beside the conditions, and gates nothing.
    reports: BTreeMap<String, Result<String, String>>,
}

/// Whether the app may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Registration {
    /// Not yet.
    Pending,
    /// Not yet, but it was, by another process that was this instance before.
    Inherited,
    /// It may, from now on.
    Registered,
}

impl Lifecycle {
    pub(crate) fn new(now: Instant) -> Self {
        let initial = [
            (condition::LISTENERS, false, "not bound yet"),
            (condition::POLICY, false, "not read yet"),
            (condition::APP, true, "no backend is required"),
            (condition::ENDPOINTS, true, "none has to be looked for"),
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

    /// When the instance came to be.
    #[must_use]
    pub fn created_at(&self) -> Instant {
        self.created_at
    }

    /// Delayed registration: whether the app may be called, or when it will be, given that it is healthy and has passed so many
    /// checks in a row. Once it was, it stays so; how a healthy app behaves later is not a matter of starting.
    ///
    /// # Errors
    /// When it will be, or `None` if nobody can say.
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

    /// Goes on with what another process has been for so long: its app need not be waited for as for a new one.
    pub fn inherit_age(&self, age: Duration) {
        self.lock().registration = Registration::Inherited;
        self.instance_age.inherit_age(age);
    }

    /// Waits until something about the conditions fits.
    pub async fn wait_until(&self, predicate: impl Fn(&Self) -> bool) {
        let mut changes = self.change_sender.subscribe();
        while !predicate(self) {
            // It outlives whoever waits here.
            _ = changes.changed().await;
        }
    }

    /// Whether a condition is met.
    #[must_use]
    pub fn is_met(&self, name: &str) -> bool {
        self.lock().is_met(name)
    }

    /// The app has failed before it was registered: it begins anew.
    pub fn reset_registration(&self) {
        self.lock().threshold_reached_at = None;
    }

    /// Takes note that a worker turns.
    pub fn record_heartbeat(&self, worker: usize, now: Instant) {
        self.lock().heartbeats.insert(worker, now);
    }

    /// Workers that have not turned for too long, and for how long.
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

    /// Counts a connection of a client, up to the listener's bound.
    #[must_use]
    pub fn listener_connections(&self, listener: &str) -> Arc<AtomicU32> {
        self.lock()
            .listener_connections
            .entry(listener.to_owned())
            .or_default()
            .clone()
    }

    /// Connections of clients, by listener.
    #[must_use]
    pub fn connections(&self) -> Vec<(String, u32)> {
        self.lock()
            .listener_connections
            .iter()
            .map(|(listener, count)| (listener.clone(), count.load(Ordering::Relaxed)))
            .collect()
    }

    /// Sets a condition, and tells if readiness changed by it.
    pub fn set_condition(
        &self,
        name: &str,
        is_met: bool,
        reason: impl Into<String>,
        now: Instant,
        telemetry: &Telemetry,
    ) {
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
        self.publish_change(inner, now, telemetry);
    }

    /// Takes a condition out, and tells if readiness changed by it.
    pub fn remove_condition(&self, name: &str, now: Instant, telemetry: &Telemetry) {
        let mut inner = self.lock();
        inner.conditions.remove(name);
        self.publish_change(inner, now, telemetry);
    }

    /// Remembers whether the newest policies are in force, or why not. It does not gate readiness: the last good ones are.
    pub fn set_policy_current(&self, result: Result<(), String>) {
        self.lock().policy_current = result;
    }

    /// Reports how something stands that does not gate readiness: a dependency, which must not take every pod down at once.
    pub fn set_report(&self, name: &str, state: Result<String, String>) {
        self.lock().reports.insert(name.to_owned(), state);
    }

    /// Takes a report back.
    pub fn remove_report(&self, name: &str) {
        self.lock().reports.remove(name);
    }

    /// What is reported beside the conditions, by name.
    #[must_use]
    pub fn reports(&self) -> Vec<(String, Result<String, String>)> {
        self.lock()
            .reports
            .iter()
            .map(|(name, state)| (name.clone(), state.clone()))
            .collect()
    }

    /// Whether the newest policies are in force.
    ///
    /// # Errors
    /// Why not.
    pub fn policy_current(&self) -> Result<(), String> {
        self.lock().policy_current.clone()
    }

    /// The conditions, by name.
    #[must_use]
    pub fn conditions(&self) -> Vec<ReadinessCondition> {
        self.lock().conditions.values().cloned().collect()
    }

    /// Whether all conditions are met.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.lock().is_ready()
    }

    /// Whether policies were in force and listeners bound at any time.
    #[must_use]
    pub fn has_started(&self) -> bool {
        self.lock().has_started
    }

    fn publish_change(
        &self,
        mut inner: MutexGuard<'_, LifecycleInner>,
        now: Instant,
        telemetry: &Telemetry,
    ) {
        let is_ready = inner.is_ready();
        inner.has_started |= inner.is_met(condition::LISTENERS) && inner.is_met(condition::POLICY);
        self.change_sender.send_replace(());
        if std::mem::replace(&mut inner.was_ready, is_ready) == is_ready {
            return;
        }
        if is_ready && self.instance_age.age(now).is_none() {
            self.instance_age.mark_ready(now, telemetry.wall_time());
        }
        let unmet = inner
            .conditions
            .values()
            .filter(|condition| !condition.is_met)
            .map(|condition| format!("{}: {}", condition.name, condition.reason))
            .collect();
        drop(inner);
        telemetry.emit(Event::ReadinessChanged { is_ready, unmet });
    }

    fn lock(&self) -> MutexGuard<'_, LifecycleInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
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
