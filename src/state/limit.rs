//! A concurrency limit that is shared, with a queue whose members wait without polling.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use tokio::sync::oneshot;

use crate::resilience::{
    Mode,
    concurrency::{Admission, ConcurrencyConfig, ConcurrencyLimit, Ticket},
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
    waiting: HashMap<Ticket, oneshot::Sender<()>>,
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
    /// Waiting.
    pub pending: u32,
    /// Refused since the start.
    pub refused: u64,
}

impl LimitState {
    /// Makes a limit with nothing in flight.
    #[must_use]
    pub fn new(name: Arc<str>, config: ConcurrencyConfig, mode: Mode) -> Self {
        Self { name, inner: Mutex::new(Inner { machine: ConcurrencyLimit::new(config), mode, waiting: HashMap::new() }) }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Asks for a place.
    pub fn enter(self: &Arc<Self>) -> Entry {
        let mut inner = self.lock();
        match inner.machine.try_acquire() {
            Admission::Admitted => Entry::Admitted(LimitGuard(self.clone())),
            Admission::Queued(ticket) if inner.mode == Mode::Shadow => {
                // It was queued a moment ago under this very lock, so that it cannot have been admitted.
                _ = inner.machine.abandon(ticket);
                inner.machine.acquire_anyway();
                Entry::WouldRefuse(LimitGuard(self.clone()))
            }
            Admission::Queued(ticket) => {
                let (admit, admitted) = oneshot::channel();
                inner.waiting.insert(ticket, admit);
                Entry::Queued(Waiting { limit: self.clone(), ticket: Some(ticket), admitted })
            }
            Admission::Refused if inner.mode == Mode::Shadow => {
                inner.machine.acquire_anyway();
                Entry::WouldRefuse(LimitGuard(self.clone()))
            }
            Admission::Refused => Entry::Refused,
        }
    }

    /// Follows new bounds; what is in flight and waiting is kept.
    pub fn reconfigure(&self, config: ConcurrencyConfig, mode: Mode) {
        let mut inner = self.lock();
        inner.mode = mode;
        for ticket in inner.machine.reconfigure(config) {
            inner.admit(ticket);
        }
    }

    /// What a view shows.
    #[must_use]
    pub fn snapshot(&self) -> LimitSnapshot {
        let inner = self.lock();
        let machine = &inner.machine;
        LimitSnapshot { config: machine.config(), mode: inner.mode, in_flight: machine.in_flight(), pending: machine.pending(), refused: machine.refused() }
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
        if let Some(admit) = self.waiting.remove(&ticket) {
            // If its owner has just left, dropping the ticket releases the place.
            _ = admit.send(());
        }
    }
}

/// A place in flight.
#[derive(Debug)]
#[must_use = "a place is held as long as its guard lives"]
pub struct LimitGuard(Arc<LimitState>);

impl Drop for LimitGuard {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// A place in the queue; becomes a place in flight. Dropped before that it leaves the queue.
#[derive(Debug)]
pub struct Waiting {
    limit: Arc<LimitState>,
    ticket: Option<Ticket>,
    admitted: oneshot::Receiver<()>,
}

impl Future for Waiting {
    type Output = LimitGuard;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<LimitGuard> {
        // The sender lives in the limit until it sends, so that an error cannot come before a value.
        Pin::new(&mut self.admitted).poll(context).map(|_| {
            self.ticket = None;
            LimitGuard(self.limit.clone())
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
    use std::num::NonZeroU32;

    use super::*;

    fn limit(max_in_flight: u32, max_pending: u32, mode: Mode) -> Arc<LimitState> {
        let max_in_flight = NonZeroU32::new(max_in_flight).expect("not zero");
        Arc::new(LimitState::new("app".into(), ConcurrencyConfig { max_in_flight, max_pending }, mode))
    }

    fn numbers(limit: &LimitState) -> (u32, u32) {
        let snapshot = limit.snapshot();
        (snapshot.in_flight, snapshot.pending)
    }

    #[tokio::test]
    async fn who_waits_is_told_when_a_place_comes_free() {
        let limit = limit(1, 1, Mode::Enforce);
        let Entry::Admitted(first) = limit.enter() else { panic!("room") };
        let Entry::Queued(waiting) = limit.enter() else { panic!("queue") };
        assert!(matches!(limit.enter(), Entry::Refused));
        drop(first);
        let second = waiting.await;
        assert_eq!(numbers(&limit), (1, 0));
        drop(second);
        assert_eq!(numbers(&limit), (0, 0));
    }

    #[test]
    fn a_waiter_that_leaves_takes_nothing_with_it() {
        let limit = limit(1, 2, Mode::Enforce);
        let Entry::Admitted(first) = limit.enter() else { panic!("room") };
        let (Entry::Queued(leaving), Entry::Queued(staying)) = (limit.enter(), limit.enter()) else { panic!("queue") };
        drop(leaving);
        drop(first);
        assert_eq!(numbers(&limit), (1, 0), "the second in line was admitted");
        drop(staying);
        assert_eq!(numbers(&limit), (0, 0), "admitted and never polled: the place came back");
    }

    #[test]
    fn shadow_lets_pass_and_counts() {
        let limit = limit(1, 0, Mode::Shadow);
        let first = limit.enter();
        let second = limit.enter();
        assert!(matches!((&first, &second), (Entry::Admitted(_), Entry::WouldRefuse(_))));
        assert_eq!(numbers(&limit), (2, 0));
        drop((first, second));
        assert_eq!(numbers(&limit), (0, 0));
    }
}
