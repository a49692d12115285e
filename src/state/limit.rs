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
    /// The bounds that are written; an adaptive limit lowers them.
    written: ConcurrencyConfig,
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
    pub fn new(name: Arc<str>, config: ConcurrencyConfig, mode: Mode, adaptive: Option<(AdaptiveConfig, Mode)>, now: Instant) -> Self {
        let inner = Inner { machine: ConcurrencyLimit::new(config), mode, written: config, adaptive: None, waiting: HashMap::new() };
        let state = Self { name, inner: Mutex::new(inner) };
        state.reconfigure(config, mode, adaptive, now);
        state
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Asks for a place; with a class, for one of those that it may fill.
    pub fn enter(self: &Arc<Self>, class: Option<Class>) -> Entry {
        let mut inner = self.lock();
        let of = class.unwrap_or(Class::Critical);
        if class.is_some_and(|class| !inner.machine.has_room_for(class)) {
            if inner.mode != Mode::Shadow {
                return Entry::Shed;
            }
            inner.machine.acquire_anyway();
            return Entry::WouldRefuse(self.guard(inner.start(of), &inner));
        }
        match inner.machine.try_acquire() {
            Admission::Admitted => {
                let start = inner.start(of);
                let is_over = inner.adaptive.as_ref().is_some_and(|(limit, mode)| *mode == Mode::Shadow && start.in_flight > limit.limit());
                let guard = self.guard(start, &inner);
                if is_over { Entry::WouldRefuse(guard) } else { Entry::Admitted(guard) }
            }
            Admission::Queued(ticket) if inner.mode == Mode::Shadow => {
                // It was queued a moment ago under this very lock, so that it cannot have been admitted.
                _ = inner.machine.abandon(ticket);
                inner.machine.acquire_anyway();
                Entry::WouldRefuse(self.guard(inner.start(of), &inner))
            }
            Admission::Queued(ticket) => {
                let (admit, admitted) = oneshot::channel();
                inner.waiting.insert(ticket, admit);
                Entry::Queued(Waiting { limit: self.clone(), ticket: Some(ticket), admitted })
            }
            Admission::Refused if inner.mode == Mode::Shadow => {
                inner.machine.acquire_anyway();
                Entry::WouldRefuse(self.guard(inner.start(of), &inner))
            }
            Admission::Refused => Entry::Refused,
        }
    }

    /// Follows new bounds; what is in flight and waiting is kept, and what an adaptive limit has learned, unless it
    /// learns otherwise now, or begins to act: what it saw in shadow it did not hold.
    pub fn reconfigure(&self, config: ConcurrencyConfig, mode: Mode, adaptive: Option<(AdaptiveConfig, Mode)>, now: Instant) {
        let mut inner = self.lock();
        inner.mode = mode;
        inner.written = config;
        let last = inner.adaptive.take();
        inner.adaptive = adaptive.map(|(config, mode)| {
            let kept = last.filter(|(last, was)| last.config().algorithm == config.algorithm && *was == mode).map(|(mut limit, _)| {
                limit.reconfigure(config);
                limit
            });
            (kept.unwrap_or_else(|| AdaptiveLimit::new(config, now)), mode)
        });
        inner.follow();
    }

    /// What a view shows.
    #[must_use]
    pub fn snapshot(&self) -> LimitSnapshot {
        let inner = self.lock();
        let machine = &inner.machine;
        let adaptive = inner.adaptive.as_ref().map(|(limit, mode)| (limit.limit(), *mode));
        LimitSnapshot {
            config: ConcurrencyConfig { max_in_flight: machine.max_in_flight(), ..machine.config() },
            mode: inner.mode,
            in_flight: machine.in_flight(),
            working: machine.working(),
            pending: machine.pending(),
            refused: machine.refused(),
            adaptive,
        }
    }

    fn guard(self: &Arc<Self>, start: Start, inner: &Inner) -> LimitGuard {
        LimitGuard { limit: self.clone(), start, is_adaptive: inner.adaptive.is_some(), is_answering: false }
    }

    /// Whether a class may ask for a place.
    #[must_use]
    pub fn has_room_for(&self, class: Class) -> bool {
        self.lock().machine.has_room_for(class)
    }

    fn release(&self) {
        let mut inner = self.lock();
        if let Some(ticket) = inner.machine.release() {
            inner.admit(ticket);
        }
    }

    fn abandon(&self, ticket: Ticket) {
        let mut inner = self.lock();
        inner.waiting.remove(&ticket);
        if !inner.machine.abandon(ticket) {
            drop(inner);
            // It was admitted, and nobody is there to take the place.
            self.release();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn admit(&mut self, ticket: Ticket) {
        let start = self.start(Class::Critical);
        if let Some(admit) = self.waiting.remove(&ticket) {
            // If its owner has just left, dropping the ticket releases the place.
            _ = admit.send(start);
        }
    }

    /// How it is for a call of a class that begins now. A class that fills its part of the limit is held by it.
    fn start(&self, class: Class) -> Start {
        let in_flight = self.machine.working();
        let limit = self.adaptive.as_ref().and_then(|(limit, _)| NonZeroU32::new(limit.limit()));
        Start { in_flight, is_full: limit.is_some_and(|limit| in_flight >= class.places_of(limit).get()) }
    }

    /// Puts the written and the adaptive limit in force.
    fn follow(&mut self) {
        let acting = self.adaptive.as_ref().filter(|(_, mode)| *mode == Mode::Enforce).and_then(|(limit, _)| NonZeroU32::new(limit.limit()));
        let mut admitted = self.machine.reconfigure(self.written);
        admitted.extend(self.machine.lower(acting));
        admitted.into_iter().for_each(|ticket| self.admit(ticket));
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
        self.is_adaptive.then(|| Learner { limit: self.limit.clone(), start: self.start })
    }

    /// The answer has begun: for an adaptive limit the backend has done its work. The place is kept.
    pub fn answer_begins(&mut self) {
        if !self.is_adaptive || self.is_answering {
            return;
        }
        self.is_answering = true;
        let mut inner = self.limit.lock();
        if let Some(ticket) = inner.machine.begin_answer() {
            inner.admit(ticket);
        }
    }
}

impl Drop for LimitGuard {
    fn drop(&mut self) {
        let mut inner = self.limit.lock();
        let next = if self.is_answering { inner.machine.end_answer() } else { inner.machine.release() };
        if let Some(ticket) = next {
            inner.admit(ticket);
        }
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
        if inner.adaptive.as_mut().is_some_and(|(limit, _)| limit.note(took, self.start, is_drop, now)) {
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
            let start = start.unwrap_or(Start { in_flight: 0, is_full: false });
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
mod tests {
    use super::*;
    use crate::resilience::{adaptive::Algorithm, some_instant};

    fn limit(max_in_flight: u32, max_pending: u32, mode: Mode) -> Arc<LimitState> {
        let max_in_flight = NonZeroU32::new(max_in_flight).expect("not zero");
        Arc::new(LimitState::new("app".into(), ConcurrencyConfig { max_in_flight, max_pending }, mode, None, some_instant()))
    }

    fn numbers(limit: &LimitState) -> (u32, u32) {
        let snapshot = limit.snapshot();
        (snapshot.in_flight, snapshot.pending)
    }

    #[tokio::test]
    async fn who_waits_is_told_when_a_place_comes_free() {
        let limit = limit(1, 1, Mode::Enforce);
        let Entry::Admitted(first) = limit.enter(None) else { panic!("room") };
        let Entry::Queued(waiting) = limit.enter(None) else { panic!("queue") };
        assert!(matches!(limit.enter(None), Entry::Refused));
        drop(first);
        let second = waiting.await;
        assert_eq!(numbers(&limit), (1, 0));
        drop(second);
        assert_eq!(numbers(&limit), (0, 0));
    }

    #[test]
    fn a_waiter_that_leaves_takes_nothing_with_it() {
        let limit = limit(1, 2, Mode::Enforce);
        let Entry::Admitted(first) = limit.enter(None) else { panic!("room") };
        let (Entry::Queued(leaving), Entry::Queued(staying)) = (limit.enter(None), limit.enter(None)) else { panic!("queue") };
        drop(leaving);
        drop(first);
        assert_eq!(numbers(&limit), (1, 0), "the second in line was admitted");
        drop(staying);
        assert_eq!(numbers(&limit), (0, 0), "admitted and never polled: the place came back");
    }

    #[test]
    fn shadow_lets_pass_and_counts() {
        let limit = limit(1, 0, Mode::Shadow);
        let first = limit.enter(None);
        let second = limit.enter(None);
        assert!(matches!((&first, &second), (Entry::Admitted(_), Entry::WouldRefuse(_))));
        assert_eq!(numbers(&limit), (2, 0));
        drop((first, second));
        assert_eq!(numbers(&limit), (0, 0));
    }

    #[test]
    fn an_adaptive_limit_lowers_the_written_one_and_only_watches_in_shadow() {
        let (start, written) = (some_instant(), ConcurrencyConfig { max_in_flight: NonZeroU32::new(100).expect("not zero"), max_pending: 0 });
        let config = AdaptiveConfig { algorithm: Algorithm::Gradient2, min_limit: 2, max_limit: 100 };
        for mode in [Mode::Enforce, Mode::Shadow] {
            let limit = Arc::new(LimitState::new("app".into(), written, Mode::Enforce, Some((config, mode)), start));
            let entries: Vec<_> = (0..3).map(|_| limit.enter(None)).collect();
            let third = if mode == Mode::Enforce { matches!(entries[2], Entry::Refused) } else { matches!(entries[2], Entry::WouldRefuse(_)) };
            assert!(third, "{mode:?}: it begins with the lowest limit");
            let Entry::Admitted(guard) = &entries[1] else { panic!("room") };
            let learner = guard.learner().expect("it is adaptive");
            for call in 1..=200 {
                learner.note(Duration::from_millis(5), false, start + Duration::from_millis(10 * call));
            }
            let learned = limit.snapshot().adaptive.expect("it is adaptive").0;
            assert!(learned > 2, "{mode:?}: calls take no longer for it");
            assert_eq!(limit.snapshot().config.max_in_flight.get(), if mode == Mode::Enforce { learned } else { 100 });
            limit.reconfigure(written, Mode::Enforce, None, start);
            assert_eq!(limit.snapshot().config, written, "what is taken out of the policy is over at once");
        }
    }
}
