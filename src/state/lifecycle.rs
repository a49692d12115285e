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

use super::youth::Youth;
use crate::telemetry::{Telemetry, event::Event};

/// A worker beats once a second; one that is silent for so long is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(15);

/// Why the instance ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It drained, and whether nothing was left in flight.
    Drained {
        /// Whether nothing was left.
        is_clean: bool,
    },
    /// It was asked twice, and left at once.
    AtOnce,
    /// A part of it failed.
    Failed,
}

/// A named condition of readiness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Its name.
    pub name: String,
    /// Whether it is met.
    pub is_met: bool,
    /// Since when it is so.
    pub since: Instant,
    /// Why.
    pub why: String,
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
    born: Instant,
    /// Since when it has been ready.
    pub youth: Youth,
    /// Is told whenever a condition was looked at.
    noted: watch::Sender<()>,
    /// Guards the conditions.
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    conditions: BTreeMap<String, Condition>,
    was_ready: bool,
    has_started: bool,
    beats: BTreeMap<usize, Instant>,
    passing_since: Option<Instant>,
    registration: Registration,
    connections: BTreeMap<String, Arc<AtomicU32>>,
    is_policy_current: Result<(), String>,
    /// What is reported beside the conditions, and gates nothing.
    reports: BTreeMap<String, Result<String, String>>,
}

/// Whether the app may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Registration {
    /// Not yet.
    New,
    /// Not yet, but it was, by another process that was this instance before.
    Continued,
    /// It may, from now on.
    Done,
}

impl Lifecycle {
    pub(super) fn new(now: Instant) -> Self {
        let unmet = [
            (condition::LISTENERS, false, "not bound yet"),
            (condition::POLICY, false, "not read yet"),
            (condition::APP, true, "no backend is required"),
            (condition::ENDPOINTS, true, "none has to be looked for"),
            (condition::NOT_DRAINING, true, "serving"),
        ];
        let conditions = unmet.map(|(name, is_met, why)| {
            (
                name.to_owned(),
                Condition {
                    name: name.to_owned(),
                    is_met,
                    since: now,
                    why: why.to_owned(),
                },
            )
        });
        Self {
            born: now,
            youth: Youth::new(now),
            noted: watch::Sender::new(()),
            inner: Mutex::new(Inner {
                conditions: conditions.into(),
                was_ready: false,
                has_started: false,
                beats: BTreeMap::new(),
                passing_since: None,
                registration: Registration::New,
                connections: BTreeMap::new(),
                is_policy_current: Ok(()),
                reports: BTreeMap::new(),
            }),
        }
    }

    /// When the instance came to be.
    #[must_use]
    pub fn born(&self) -> Instant {
        self.born
    }

    /// Delayed registration: whether the app may be called, or when it will be, given that it is healthy and has passed so many
    /// checks in a row. Once it was, it stays so; how a healthy app behaves later is not a matter of starting.
    ///
    /// # Errors
    /// When it will be, or `None` if nobody can say.
    pub fn register(
        &self,
        passes: u32,
        threshold: u32,
        delay: Duration,
        now: Instant,
    ) -> Result<(), Option<Instant>> {
        let mut inner = self.lock();
        let (threshold, delay) = match inner.registration {
            Registration::New => (threshold, delay),
            Registration::Continued => (1, Duration::ZERO),
            Registration::Done => return Ok(()),
        };
        if inner.passing_since.is_none() && passes < threshold {
            return Err(None);
        }
        let ready_at = *inner.passing_since.get_or_insert(now) + delay;
        if now < ready_at {
            return Err(Some(ready_at));
        }
        inner.registration = Registration::Done;
        Ok(())
    }

    /// Goes on with what another process has been for so long: its app need not be waited for as for a new one.
    pub fn continues(&self, age: Duration) {
        self.lock().registration = Registration::Continued;
        self.youth.continues(age);
    }

    /// Waits until something about the conditions fits.
    pub async fn until(&self, fits: impl Fn(&Self) -> bool) {
        let mut noted = self.noted.subscribe();
        while !fits(self) {
            // It outlives whoever waits here.
            _ = noted.changed().await;
        }
    }

    /// Whether a condition is met.
    #[must_use]
    pub fn is_met(&self, name: &str) -> bool {
        self.lock().is_met(name)
    }

    /// The app has failed before it was registered: it begins anew.
    pub fn unregister(&self) {
        self.lock().passing_since = None;
    }

    /// Takes note that a worker turns.
    pub fn beat(&self, worker: usize, now: Instant) {
        self.lock().beats.insert(worker, now);
    }

    /// Workers that have not turned for too long, and for how long.
    #[must_use]
    pub fn stuck_workers(&self, now: Instant) -> Vec<(usize, Duration)> {
        let silent =
            |(worker, beat): (&usize, &Instant)| (*worker, now.saturating_duration_since(*beat));
        self.lock()
            .beats
            .iter()
            .map(silent)
            .filter(|(_, silence)| *silence > STUCK_AFTER)
            .collect()
    }

    /// Counts a connection of a client, up to the listener's bound.
    #[must_use]
    pub fn listener_connections(&self, listener: &str) -> Arc<AtomicU32> {
        self.lock()
            .connections
            .entry(listener.to_owned())
            .or_default()
            .clone()
    }

    /// Connections of clients, by listener.
    #[must_use]
    pub fn connections(&self) -> Vec<(String, u32)> {
        self.lock()
            .connections
            .iter()
            .map(|(listener, count)| (listener.clone(), count.load(Ordering::Relaxed)))
            .collect()
    }

    /// Sets a condition, and tells if readiness changed by it.
    pub fn set(
        &self,
        name: &str,
        is_met: bool,
        why: impl Into<String>,
        now: Instant,
        telemetry: &Telemetry,
    ) {
        let mut inner = self.lock();
        let why = why.into();
        match inner.conditions.get_mut(name) {
            Some(condition) if condition.is_met == is_met => condition.why = why,
            _ => {
                inner.conditions.insert(
                    name.to_owned(),
                    Condition {
                        name: name.to_owned(),
                        is_met,
                        since: now,
                        why,
                    },
                );
            }
        }
        self.tell(inner, now, telemetry);
    }

    /// Takes a condition out, and tells if readiness changed by it.
    pub fn clear(&self, name: &str, now: Instant, telemetry: &Telemetry) {
        let mut inner = self.lock();
        inner.conditions.remove(name);
        self.tell(inner, now, telemetry);
    }

    /// Remembers whether the newest policies are in force, or why not. It does not gate readiness: the last good ones are.
    pub fn set_policy_current(&self, result: Result<(), String>) {
        self.lock().is_policy_current = result;
    }

    /// Reports how something stands that does not gate readiness: a dependency, which must not take every pod down at once.
    pub fn report(&self, name: &str, state: Result<String, String>) {
        self.lock().reports.insert(name.to_owned(), state);
    }

    /// Takes a report back.
    pub fn retract(&self, name: &str) {
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
        self.lock().is_policy_current.clone()
    }

    /// The conditions, by name.
    #[must_use]
    pub fn conditions(&self) -> Vec<Condition> {
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

    fn tell(&self, mut inner: MutexGuard<'_, Inner>, now: Instant, telemetry: &Telemetry) {
        let is_ready = inner.is_ready();
        inner.has_started |= inner.is_met(condition::LISTENERS) && inner.is_met(condition::POLICY);
        self.noted.send_replace(());
        if std::mem::replace(&mut inner.was_ready, is_ready) == is_ready {
            return;
        }
        if is_ready && self.youth.age(now).is_none() {
            self.youth.begin(now, telemetry.wall());
        }
        let unmet = inner
            .conditions
            .values()
            .filter(|condition| !condition.is_met)
            .map(|condition| format!("{}: {}", condition.name, condition.why))
            .collect();
        drop(inner);
        telemetry.emit(Event::ReadinessChanged { is_ready, unmet });
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn is_ready(&self) -> bool {
        self.conditions.values().all(|condition| condition.is_met)
    }

    fn is_met(&self, name: &str) -> bool {
        self.conditions
            .get(name)
            .is_some_and(|condition| condition.is_met)
    }
}
