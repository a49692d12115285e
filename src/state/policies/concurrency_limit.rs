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
    adaptive::{AdaptiveConfig, AdaptiveLimit, CallStart},
    concurrency::{ConcurrencyConfig, ConcurrencyDecision, ConcurrencyLimit, QueueTicket},
    shed::PriorityClass,
};

/// A limit by its name.
#[derive(Debug)]
pub struct ConcurrencyLimitState {
    name: Arc<str>,
    /// Guards one call of the machine and the telling of who was admitted.
    inner: Mutex<LimitInner>,
}

#[derive(Debug)]
struct LimitInner {
    machine: ConcurrencyLimit,
    mode: Mode,
    adaptive: Option<(AdaptiveLimit, Mode)>,
    waiters: HashMap<QueueTicket, oneshot::Sender<CallStart>>,
}

/// What the limit said to a request.
#[derive(Debug)]
pub enum AcquireOutcome {
    /// It is in flight.
    Admitted(ConcurrencyPermit),
    /// It has to wait for this; `None` would have been an end.
    Queued(PendingAcquire),
    /// It is refused.
    Rejected,
    /// It is refused because what is left is for those that matter more.
    Shed,
    /// It would have had to wait or been refused, and shadow mode lets it pass.
    WouldReject(ConcurrencyPermit),
}

/// What a view shows of a limit.
#[derive(Debug, Clone, Copy)]
pub struct ConcurrencySnapshot {
    /// The bounds.
    pub config: ConcurrencyConfig,
    /// Whether it acts.
    pub mode: Mode,
    /// In flight.
    pub in_flight: u32,
    /// Those of them whose answer has not begun.
    pub awaiting_response: u32,
    /// Waiting.
    pub pending: u32,
    /// Refused since the start.
    pub rejected: u64,
    /// What the adaptive limit holds right, if there is one, and whether it acts.
    pub adaptive: Option<(u32, Mode)>,
}

impl ConcurrencyLimitState {
    /// Makes a limit with nothing in flight.
    #[must_use]
    pub fn new(
        name: Arc<str>,
        config: ConcurrencyConfig,
        mode: Mode,
        adaptive: Option<(AdaptiveConfig, Mode)>,
        now: Instant,
    ) -> Self {
        let inner = LimitInner {
            machine: ConcurrencyLimit::new(config),
            mode,
            adaptive: None,
            waiters: HashMap::new(),
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
    pub fn try_acquire(self: &Arc<Self>, class: PriorityClass) -> AcquireOutcome {
        let mut inner = self.lock();
        if !inner.machine.has_room_for(class) {
            return if inner.mode == Mode::Shadow {
                self.force_acquire(&mut inner, class)
            } else {
                AcquireOutcome::Shed
            };
        }
        match inner.machine.try_acquire() {
            ConcurrencyDecision::Admitted => {
                let call_start = inner.call_start(class);
                let exceeds_adaptive_limit =
                    inner.adaptive.as_ref().is_some_and(|(limit, mode)| {
                        *mode == Mode::Shadow && call_start.in_flight > limit.limit()
                    });
                let permit = self.issue_permit(call_start, &inner);
                if exceeds_adaptive_limit {
                    AcquireOutcome::WouldReject(permit)
                } else {
                    AcquireOutcome::Admitted(permit)
                }
            }
            ConcurrencyDecision::Queued(ticket) if inner.mode == Mode::Shadow => {
                // It was queued a moment ago under this very lock, so that it cannot have been admitted.
                _ = inner.machine.abandon(ticket);
                self.force_acquire(&mut inner, class)
            }
            ConcurrencyDecision::Queued(ticket) => {
                let (admission_sender, admission_receiver) = oneshot::channel();
                inner.waiters.insert(ticket, admission_sender);
                AcquireOutcome::Queued(PendingAcquire {
                    limit: self.clone(),
                    ticket: Some(ticket),
                    admission_receiver,
                })
            }
            ConcurrencyDecision::Rejected if inner.mode == Mode::Shadow => {
                self.force_acquire(&mut inner, class)
            }
            ConcurrencyDecision::Rejected => AcquireOutcome::Rejected,
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
        inner.notify_admitted(admitted);
        let previous = inner.adaptive.take();
        inner.adaptive = adaptive.map(|(config, mode)| {
            let retained = previous
                .filter(|(previous, previous_mode)| {
                    previous.config().algorithm == config.algorithm && *previous_mode == mode
                })
                .map(|(mut limit, _)| {
                    limit.reconfigure(config);
                    limit
                });
            (
                retained.unwrap_or_else(|| AdaptiveLimit::new(config, now)),
                mode,
            )
        });
        inner.apply_adaptive_limit();
    }

    /// What a view shows.
    #[must_use]
    pub fn snapshot(&self) -> ConcurrencySnapshot {
        let inner = self.lock();
        let machine = &inner.machine;
        let adaptive = inner
            .adaptive
            .as_ref()
            .map(|(limit, mode)| (limit.limit(), *mode));
        ConcurrencySnapshot {
            config: ConcurrencyConfig {
                max_in_flight: machine.effective_limit(),
                ..machine.config()
            },
            mode: inner.mode,
            in_flight: machine.in_flight(),
            awaiting_response: machine.awaiting_response(),
            pending: machine.pending(),
            rejected: machine.rejected(),
            adaptive,
        }
    }

    fn issue_permit(
        self: &Arc<Self>,
        call_start: CallStart,
        inner: &LimitInner,
    ) -> ConcurrencyPermit {
        ConcurrencyPermit {
            limit: self.clone(),
            start: call_start,
            is_adaptive: inner.adaptive.is_some(),
            has_response_started: false,
        }
    }

    /// Whether a class may ask for a place.
    #[must_use]
    pub fn has_room_for(&self, class: PriorityClass) -> bool {
        self.lock().machine.has_room_for(class)
    }

    /// Lets a request pass that would not have been admitted.
    fn force_acquire(
        self: &Arc<Self>,
        inner: &mut LimitInner,
        class: PriorityClass,
    ) -> AcquireOutcome {
        inner.machine.force_acquire();
        AcquireOutcome::WouldReject(self.issue_permit(inner.call_start(class), inner))
    }

    fn abandon(&self, ticket: QueueTicket) {
        let mut inner = self.lock();
        inner.waiters.remove(&ticket);
        if !inner.machine.abandon(ticket) {
            // It was admitted, and nobody is there to take the place.
            let next = inner.machine.release();
            inner.notify_admitted(next);
        }
    }

    fn lock(&self) -> MutexGuard<'_, LimitInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LimitInner {
    /// Tells those whose turn it is.
    fn notify_admitted(&mut self, tickets: impl IntoIterator<Item = QueueTicket>) {
        for ticket in tickets {
            let call_start = self.call_start(PriorityClass::Critical);
            if let Some(admission_sender) = self.waiters.remove(&ticket) {
                // If its owner has just left, dropping the ticket releases the place.
                _ = admission_sender.send(call_start);
            }
        }
    }

    /// How it is for a call of a class that begins now. A class that fills its part of the limit is held by it.
    fn call_start(&self, class: PriorityClass) -> CallStart {
        let in_flight = self.machine.awaiting_response();
        let limit = self
            .adaptive
            .as_ref()
            .and_then(|(limit, _)| NonZeroU32::new(limit.limit()));
        CallStart {
            in_flight,
            is_at_limit: limit.is_some_and(|limit| in_flight >= class.max_permits(limit).get()),
        }
    }

    /// Puts the adaptive limit in force.
    fn apply_adaptive_limit(&mut self) {
        let enforced_limit = self
            .adaptive
            .as_ref()
            .filter(|(_, mode)| *mode == Mode::Enforce)
            .and_then(|(limit, _)| NonZeroU32::new(limit.limit()));
        let admitted = self.machine.set_adaptive_limit(enforced_limit);
        self.notify_admitted(admitted);
    }
}

/// A place in flight.
#[derive(Debug)]
#[must_use = "a place is held as long as its guard lives"]
pub struct ConcurrencyPermit {
    limit: Arc<ConcurrencyLimitState>,
    start: CallStart,
    is_adaptive: bool,
    /// Whether its answer has begun.
    has_response_started: bool,
}

impl ConcurrencyPermit {
    /// Who tells an adaptive limit what the attempts of this call take; nobody if the limit is not.
    #[must_use]
    pub fn sampler(&self) -> Option<LimitSampler> {
        self.is_adaptive.then(|| LimitSampler {
            limit: self.limit.clone(),
            start: self.start,
        })
    }

    /// The answer has begun: for an adaptive limit the backend has done its work. The place is kept.
    pub fn record_response_start(&mut self) {
        if !self.is_adaptive || self.has_response_started {
            return;
        }
        self.has_response_started = true;
        let mut inner = self.limit.lock();
        let next = inner.machine.begin_response();
        inner.notify_admitted(next);
    }
}

impl Drop for ConcurrencyPermit {
    fn drop(&mut self) {
        let mut inner = self.limit.lock();
        let next = if self.has_response_started {
            inner.machine.end_response()
        } else {
            inner.machine.release()
        };
        inner.notify_admitted(next);
    }
}

/// Tells an adaptive limit what attempts take.
#[derive(Debug, Clone)]
pub struct LimitSampler {
    limit: Arc<ConcurrencyLimitState>,
    start: CallStart,
}

impl LimitSampler {
    /// How long an attempt took until it was answered, or that the backend dropped it.
    pub fn record_sample(&self, latency: Duration, is_dropped: bool, now: Instant) {
        let mut inner = self.limit.lock();
        if inner
            .adaptive
            .as_mut()
            .is_some_and(|(limit, _)| limit.record_sample(latency, self.start, is_dropped, now))
        {
            inner.apply_adaptive_limit();
        }
    }
}

/// A place in the queue; becomes a place in flight. Dropped before that it leaves the queue.
#[derive(Debug)]
pub struct PendingAcquire {
    limit: Arc<ConcurrencyLimitState>,
    ticket: Option<QueueTicket>,
    admission_receiver: oneshot::Receiver<CallStart>,
}

impl Future for PendingAcquire {
    type Output = ConcurrencyPermit;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<ConcurrencyPermit> {
        Pin::new(&mut self.admission_receiver)
            .poll(context)
            .map(|call_start| {
                self.ticket = None;
                // The sender lives in the limit until it sends, so that an error cannot come before a value.
                let call_start = call_start.unwrap_or(CallStart {
                    in_flight: 0,
                    is_at_limit: false,
                });
                let inner = self.limit.lock();
                self.limit.issue_permit(call_start, &inner)
            })
    }
}

impl Drop for PendingAcquire {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.limit.abandon(ticket);
        }
    }
}

#[cfg(test)]
mod tests;
