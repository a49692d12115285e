//! A concurrency limit that is shared, with a queue whose members wait without polling.

use std::{
    collections::HashMap,
    future::Future,
    num::NonZeroU32,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use crate::resilience::{
    Mode,
    adaptive::{AdaptiveConfig, AdaptiveLimit, Start},
    concurrency::{Admission, ConcurrencyConfig, ConcurrencyLimit, Ticket},
    shed::Class,
};

/// A limit by its name.
#[derive(Debug)]
pub struct LimitState {
    name: Arc<str>,
    /// Guards one call of the machine and the telling of who was admitted.
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    machine: ConcurrencyLimit,
    mode: Mode,
    adaptive: Option<(AdaptiveLimit, Mode)>,
    waiting: HashMap<Ticket, oneshot::Sender<Start>>,
}

/// What the limit said to a request.
#[derive(Debug)]
pub enum Entry {
    /// It is in flight.
    Admitted(LimitGuard),
    /// It has to wait for this; `None` would have been an end.
    Queued(Waiting),
    /// It is refused.
    Refused,
    /// It is refused because what is left is for those that matter more.
    Shed,
    /// It would have had to wait or been refused, and shadow mode lets it pass.
    WouldRefuse(LimitGuard),
}

/// What a view shows of a limit.
#[derive(Debug, Clone, Copy)]
pub struct LimitSnapshot {
    /// The bounds.
    pub config: ConcurrencyConfig,
    /// Whether it acts.
    pub mode: Mode,
    /// In flight.
    pub in_flight: u32,
    /// Those of them whose answer has not begun.
    pub working: u32,
    /// Waiting.
    pub pending: u32,
    /// Refused since the start.
    pub refused: u64,
    /// What the adaptive limit holds right, if there is one, and whether it acts.
    pub adaptive: Option<(u32, Mode)>,
}

impl LimitState {
    /// Makes a limit with nothing in flight.
    #[must_use]
    pub fn new(
        name: Arc<str>,
        config: ConcurrencyConfig,
        mode: Mode,
        adaptive: Option<(AdaptiveConfig, Mode)>,
        now: Instant,
    ) -> Self {
        let inner = Inner {
            machine: ConcurrencyLimit::new(config),
            mode,
            adaptive: None,
            waiting: HashMap::new(),
        };
        let state = Self {
            name,
            inner: Mutex::new(inner),
        };
        state.reconfigure(config, mode, adaptive, now);
        state
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Asks for one of the places that a class may fill; the highest class may fill all.
    pub fn enter(self: &Arc<Self>, class: Class) -> Entry {
        let mut inner = self.lock();
        if !inner.machine.has_room_for(class) {
            return if inner.mode == Mode::Shadow {
                self.anyway(&mut inner, class)
            } else {
                Entry::Shed
            };
        }
        match inner.machine.try_acquire() {
            Admission::Admitted => {
                let start = inner.start(class);
                let is_over = inner.adaptive.as_ref().is_some_and(|(limit, mode)| {
                    *mode == Mode::Shadow && start.in_flight > limit.limit()
                });
                let guard = self.guard(start, &inner);
                if is_over {
                    Entry::WouldRefuse(guard)
                } else {
                    Entry::Admitted(guard)
                }
            }
            Admission::Queued(ticket) if inner.mode == Mode::Shadow => {
                // It was queued a moment ago under this very lock, so that it cannot have been admitted.
                _ = inner.machine.abandon(ticket);
                self.anyway(&mut inner, class)
            }
            Admission::Queued(ticket) => {
                let (admit, admitted) = oneshot::channel();
                inner.waiting.insert(ticket, admit);
                Entry::Queued(Waiting {
                    limit: self.clone(),
                    ticket: Some(ticket),
                    admitted,
                })
            }
            Admission::Refused if inner.mode == Mode::Shadow => self.anyway(&mut inner, class),
            Admission::Refused => Entry::Refused,
        }
    }

    /// Follows new bounds; what is in flight and waiting is kept, and what an adaptive limit has learned, unless it
    /// learns otherwise now, or begins to act: what it saw in shadow it did not hold.
    pub fn reconfigure(
        &self,
        config: ConcurrencyConfig,
        mode: Mode,
        adaptive: Option<(AdaptiveConfig, Mode)>,
        now: Instant,
    ) {
        let mut inner = self.lock();
        inner.mode = mode;
        let admitted = inner.machine.reconfigure(config);
        inner.admit_all(admitted);
        let last = inner.adaptive.take();
        inner.adaptive = adaptive.map(|(config, mode)| {
            let kept = last
                .filter(|(last, was)| last.config().algorithm == config.algorithm && *was == mode)
                .map(|(mut limit, _)| {
                    limit.reconfigure(config);
                    limit
                });
            (
                kept.unwrap_or_else(|| AdaptiveLimit::new(config, now)),
                mode,
            )
        });
        inner.follow();
    }

    /// What a view shows.
    #[must_use]
    pub fn snapshot(&self) -> LimitSnapshot {
        let inner = self.lock();
        let machine = &inner.machine;
        let adaptive = inner
            .adaptive
            .as_ref()
            .map(|(limit, mode)| (limit.limit(), *mode));
        LimitSnapshot {
            config: ConcurrencyConfig {
                max_in_flight: machine.max_in_flight(),
                ..machine.config()
            },
            mode: inner.mode,
            in_flight: machine.in_flight(),
            working: machine.working(),
            pending: machine.pending(),
            refused: machine.refused(),
            adaptive,
        }
    }

    fn guard(self: &Arc<Self>, start: Start, inner: &Inner) -> LimitGuard {
        LimitGuard {
            limit: self.clone(),
            start,
            is_adaptive: inner.adaptive.is_some(),
            is_answering: false,
        }
    }

    /// Whether a class may ask for a place.
    #[must_use]
    pub fn has_room_for(&self, class: Class) -> bool {
        self.lock().machine.has_room_for(class)
    }

    /// Lets a request pass that would not have been admitted.
    fn anyway(self: &Arc<Self>, inner: &mut Inner, class: Class) -> Entry {
        inner.machine.acquire_anyway();
        Entry::WouldRefuse(self.guard(inner.start(class), inner))
    }

    fn abandon(&self, ticket: Ticket) {
        let mut inner = self.lock();
        inner.waiting.remove(&ticket);
        if !inner.machine.abandon(ticket) {
            // It was admitted, and nobody is there to take the place.
            let next = inner.machine.release();
            inner.admit_all(next);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Tells those whose turn it is.
    fn admit_all(&mut self, tickets: impl IntoIterator<Item = Ticket>) {
        for ticket in tickets {
            let start = self.start(Class::Critical);
            if let Some(admit) = self.waiting.remove(&ticket) {
                // If its owner has just left, dropping the ticket releases the place.
                _ = admit.send(start);
            }
        }
    }

    /// How it is for a call of a class that begins now. A class that fills its part of the limit is held by it.
    fn start(&self, class: Class) -> Start {
        let in_flight = self.machine.working();
        let limit = self
            .adaptive
            .as_ref()
            .and_then(|(limit, _)| NonZeroU32::new(limit.limit()));
        Start {
            in_flight,
            is_full: limit.is_some_and(|limit| in_flight >= class.places_of(limit).get()),
        }
    }

    /// Puts the adaptive limit in force.
    fn follow(&mut self) {
        let acting = self
            .adaptive
            .as_ref()
            .filter(|(_, mode)| *mode == Mode::Enforce)
            .and_then(|(limit, _)| NonZeroU32::new(limit.limit()));
        let admitted = self.machine.lower(acting);
        self.admit_all(admitted);
    }
}

/// A place in flight.
#[derive(Debug)]
#[must_use = "a place is held as long as its guard lives"]
pub struct LimitGuard {
    limit: Arc<LimitState>,
    start: Start,
    is_adaptive: bool,
    /// Whether its answer has begun.
    is_answering: bool,
}

impl LimitGuard {
    /// Who tells an adaptive limit what the attempts of this call take; nobody if the limit is not.
    #[must_use]
    pub fn learner(&self) -> Option<Learner> {
        self.is_adaptive.then(|| Learner {
            limit: self.limit.clone(),
            start: self.start,
        })
    }

    /// The answer has begun: for an adaptive limit the backend has done its work. The place is kept.
    pub fn answer_begins(&mut self) {
        if !self.is_adaptive || self.is_answering {
            return;
        }
        self.is_answering = true;
        let mut inner = self.limit.lock();
        let next = inner.machine.begin_answer();
        inner.admit_all(next);
    }
}

impl Drop for LimitGuard {
    fn drop(&mut self) {
        let mut inner = self.limit.lock();
        let next = if self.is_answering {
            inner.machine.end_answer()
        } else {
            inner.machine.release()
        };
        inner.admit_all(next);
    }
}

/// Tells an adaptive limit what attempts take.
#[derive(Debug, Clone)]
pub struct Learner {
    limit: Arc<LimitState>,
    start: Start,
}

impl Learner {
    /// How long an attempt took until it was answered, or that the backend dropped it.
    pub fn note(&self, took: Duration, is_drop: bool, now: Instant) {
        let mut inner = self.limit.lock();
        if inner
            .adaptive
            .as_mut()
            .is_some_and(|(limit, _)| limit.note(took, self.start, is_drop, now))
        {
            inner.follow();
        }
    }
}

/// A place in the queue; becomes a place in flight. Dropped before that it leaves the queue.
#[derive(Debug)]
pub struct Waiting {
    limit: Arc<LimitState>,
    ticket: Option<Ticket>,
    admitted: oneshot::Receiver<Start>,
}

impl Future for Waiting {
    type Output = LimitGuard;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<LimitGuard> {
        Pin::new(&mut self.admitted).poll(context).map(|start| {
            self.ticket = None;
            // The sender lives in the limit until it sends, so that an error cannot come before a value.
            let start = start.unwrap_or(Start {
                in_flight: 0,
                is_full: false,
            });
            let inner = self.limit.lock();
            self.limit.guard(start, &inner)
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.limit.abandon(ticket);
        }
    }
}

#[cfg(test)]
mod tests;
