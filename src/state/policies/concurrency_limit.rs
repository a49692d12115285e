//! Shared state of a concurrency limit, with a queue that waits without polling.
//!
//! This module puts a lock around the pure [`ConcurrencyLimit`] and [`AdaptiveLimit`], applies
//! their modes and wakes queued requests. Dropping a guard releases a permit or a position in
//! the queue, so a cancelled request occupies nothing. The module does not limit the time in
//! the queue: the caller does.

use std::{
    collections::HashMap,
    future::Future,
    num::NonZeroU32,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::{
    policy::sections::{PolicySpec, connection_limits::ConnectionLimitsSpec},
    resilience::{
        Mode,
        adaptive::{AdaptiveConfig, AdaptiveLimit, CallStart},
        concurrency::{ConcurrencyConfig, ConcurrencyDecision, ConcurrencyLimit, QueueTicket},
        shed::PriorityClass,
    },
    state::{
        policies::destination_policy::DestinationPolicyState,
        table::{BuildContext, Reconfigure},
    },
};

/// Concurrency limit that is shared by all requests under one name.
#[derive(Debug)]
pub struct ConcurrencyLimitState {
    name: Arc<str>,
    /// State machines and waiting requests. The lock covers one call and the notification of
    /// the requests that it admits.
    inner: Mutex<LimitInner>,
}

#[derive(Debug)]
struct LimitInner {
    machine: ConcurrencyLimit,
    mode: Mode,
    adaptive: Option<(AdaptiveLimit, Mode)>,
    waiters: HashMap<QueueTicket, oneshot::Sender<CallStart>>,
}

/// Decision of a concurrency limit on one request.
#[derive(Debug)]
pub enum AcquireOutcome {
    /// The request may be sent; it is in flight until the permit is dropped.
    Admitted(ConcurrencyPermit),
    /// The request must wait for this future, which completes with a permit.
    Queued(PendingAcquire),
    /// The request must not be sent, because the limit and its queue are full.
    Rejected,
    /// The request must not be sent, because the free permits are reserved for higher classes.
    Shed,
    /// The request may be sent only because of shadow mode. It counts as in flight.
    WouldReject(ConcurrencyPermit),
}

/// Bounds and counts of a concurrency limit, for the admin API.
#[derive(Debug, Clone, Copy)]
pub struct ConcurrencySnapshot {
    /// Bounds in force; `max_in_flight` is the lower of the configured and the adaptive limit.
    pub config: ConcurrencyConfig,
    /// Mode of the configured limit.
    pub mode: Mode,
    /// Number of requests in flight.
    pub in_flight: u32,
    /// Number of requests in flight whose response has not started. Without an adaptive limit
    /// it equals `in_flight`.
    pub awaiting_response: u32,
    /// Number of requests in the queue.
    pub pending: u32,
    /// Number of requests that found the limit and the queue full, since the start. In shadow
    /// mode they were admitted.
    pub rejected: u64,
    /// Current value and mode of the adaptive limit; `None` if there is none.
    pub adaptive: Option<(u32, Mode)>,
}

impl ConcurrencyLimitState {
    /// Creates a limit without requests in flight.
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

    /// Returns the name that identifies this state across reloads.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Requests a permit for a request of a priority class.
    ///
    /// A lower class may use only a part of the limit; [`PriorityClass::Critical`] may use all
    /// of it.
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
                // The ticket was queued under this lock, so it cannot have been admitted yet.
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

    /// Applies new bounds and modes.
    ///
    /// Requests in flight and in the queue are retained. An adaptive limit keeps its value,
    /// unless its algorithm or its mode changes. A value from shadow mode is not enforced,
    /// because it never limited the load.
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

    /// Returns the bounds, the modes and the counts for the admin API.
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

    /// Returns whether a priority class may request a permit, without requesting one. For
    /// [`PriorityClass::Critical`] it is always `true`, because that class may also queue.
    #[must_use]
    pub fn has_room_for(&self, class: PriorityClass) -> bool {
        self.lock().machine.has_room_for(class)
    }

    /// Admits a request that the limit would not admit, so that shadow mode counts it in
    /// flight.
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
            // The ticket was admitted already, but its request is gone, so the permit is
            // released.
            let next = inner.machine.release();
            inner.notify_admitted(next);
        }
    }

    fn lock(&self) -> MutexGuard<'_, LimitInner> {
        self.inner.lock()
    }
}

impl LimitInner {
    /// Wakes the queued requests that have been admitted.
    fn notify_admitted(&mut self, tickets: impl IntoIterator<Item = QueueTicket>) {
        for ticket in tickets {
            let call_start = self.call_start(PriorityClass::Critical);
            if let Some(admission_sender) = self.waiters.remove(&ticket) {
                // If the request is gone, the drop of its `PendingAcquire` releases the permit.
                _ = admission_sender.send(call_start);
            }
        }
    }

    /// Returns the load at the start of a call, as input of the adaptive limit. A call is at
    /// the limit if its class uses its whole part of the limit.
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

    /// Applies the value of an enforced adaptive limit, and admits queued requests that now
    /// have room.
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

/// Permit for one request in flight, released when it is dropped.
#[derive(Debug)]
#[must_use = "a place is held as long as its guard lives"]
pub struct ConcurrencyPermit {
    limit: Arc<ConcurrencyLimitState>,
    start: CallStart,
    is_adaptive: bool,
    /// Whether the response has started, so that the adaptive limit no longer counts the
    /// request.
    has_response_started: bool,
}

impl ConcurrencyPermit {
    /// Returns a sampler for the attempts of this request, or `None` without an adaptive limit.
    #[must_use]
    pub fn sampler(&self) -> Option<LimitSampler> {
        self.is_adaptive.then(|| LimitSampler {
            limit: self.limit.clone(),
            start: self.start,
        })
    }

    /// Records that the response has started.
    ///
    /// The backend has done its work, so the request no longer counts against an adaptive
    /// limit. It still counts against the configured limit until the permit is dropped.
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

/// Records the latency of attempts for an adaptive limit.
#[derive(Debug, Clone)]
pub struct LimitSampler {
    limit: Arc<ConcurrencyLimitState>,
    start: CallStart,
}

impl LimitSampler {
    /// Records the time until the response of an attempt, or that the backend dropped the
    /// attempt.
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

/// Position in the queue, as a future that completes with a permit. Dropping it before that
/// leaves the queue.
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
                // The limit holds the sender until it sends a value, so an error cannot precede
                // the value.
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

impl DestinationPolicyState for ConcurrencyLimitState {
    fn select_spec(policy: &PolicySpec) -> Option<(&Arc<str>, &ConnectionLimitsSpec)> {
        policy
            .connection_limits
            .as_ref()
            .map(|spec| (&spec.name, spec))
    }
}

impl Reconfigure for ConcurrencyLimitState {
    type Spec = ConnectionLimitsSpec;

    fn create(name: &Arc<str>, spec: &Self::Spec, context: BuildContext<'_>) -> Self {
        Self::new(
            name.clone(),
            spec.concurrency,
            spec.mode,
            spec.adaptive,
            context.now,
        )
    }

    fn reconfigure(&self, spec: &Self::Spec, context: BuildContext<'_>) -> Option<Self> {
        self.reconfigure(spec.concurrency, spec.mode, spec.adaptive, context.now);
        None
    }
}

#[cfg(test)]
mod tests;
