//! A concurrency limit with a bounded queue.
//!
//! A slow backend fills the threads, memory and connections of its clients. A limit on the
//! calls in flight turns this into fast rejections (Little's law: in flight = rate * latency).
//! A short queue in front absorbs bursts. The queue is bounded and first in, first out. The
//! caller has the clock and decides how long a call waits.
//!
//! | call | permit available | queue has room | queue is full |
//! | --- | --- | --- | --- |
//! | `try_acquire` | admitted | queued | rejected |
//! | `release` | admits the head of the queue, if there is one | | |
//! | `abandon` | removes a queued ticket; an admitted one must be released | | |
//!
//! No call overtakes the queue: while a call waits, a new call is queued behind it.
//!
//! An adaptive limit can lower the configured limit to what a backend sustains
//! ([`crate::resilience::adaptive`]). It applies to calls that wait for a response. After its
//! response has started, a call counts only against the configured limit. Long responses
//! therefore do not use up the adaptive limit.

use std::{collections::VecDeque, num::NonZeroU32};

use crate::resilience::shed::PriorityClass;

/// Bounds of a concurrency limit and of its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConcurrencyConfig {
    /// Maximum number of calls in flight.
    pub max_in_flight: NonZeroU32,
    /// Maximum number of queued calls; 0 rejects calls without queueing them.
    pub max_pending: u32,
}

/// Identity of a queued call, unique for one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QueueTicket(u64);

/// Outcome of an attempt to acquire a permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "an admitted call must be released"]
pub enum ConcurrencyDecision {
    /// The call is in flight and ends with [`ConcurrencyLimit::release`].
    ///
    /// If its response has started, it ends with [`ConcurrencyLimit::end_response`] instead.
    Admitted,
    /// The call waits until a returned ticket admits it, or until it is abandoned.
    Queued(QueueTicket),
    /// The call is neither in flight nor queued.
    Rejected,
}

/// A concurrency limit with its calls in flight and its queue.
#[derive(Debug)]
pub struct ConcurrencyLimit {
    config: ConcurrencyConfig,
    /// Adaptive limit for calls that wait for a response.
    adaptive_limit: Option<NonZeroU32>,
    in_flight: u32,
    /// Calls in flight whose response has started.
    responding: u32,
    queue: VecDeque<QueueTicket>,
    next_ticket: u64,
    rejected: u64,
}

impl ConcurrencyLimit {
    /// Creates a limit with no calls in flight.
    #[must_use]
    pub fn new(config: ConcurrencyConfig) -> Self {
        Self {
            config,
            adaptive_limit: None,
            in_flight: 0,
            responding: 0,
            queue: VecDeque::new(),
            next_ticket: 0,
            rejected: 0,
        }
    }

    /// Tries to acquire a permit, and queues the call if there is none.
    pub fn try_acquire(&mut self) -> ConcurrencyDecision {
        if self.queue.is_empty() && self.has_room() {
            self.in_flight += 1;
            return ConcurrencyDecision::Admitted;
        }
        if self.pending() >= self.config.max_pending {
            self.rejected = self.rejected.saturating_add(1);
            return ConcurrencyDecision::Rejected;
        }
        let ticket = QueueTicket(self.next_ticket);
        self.next_ticket += 1;
        self.queue.push_back(ticket);
        ConcurrencyDecision::Queued(ticket)
    }

    /// Returns whether a call of this class may try to acquire a permit.
    ///
    /// A lower class fills only a part of the limit. The highest class may always try.
    #[must_use]
    pub fn has_room_for(&self, class: PriorityClass) -> bool {
        let (effective_share, configured_share) = (
            class.max_permits(self.effective_limit()),
            class.max_permits(self.config.max_in_flight),
        );
        class == PriorityClass::Critical
            || (self.awaiting_response() < effective_share.get()
                && self.in_flight < configured_share.get())
    }

    /// Counts a call in flight whatever the limit is.
    ///
    /// In shadow mode, the number of calls in flight must be correct even above the limit.
    pub fn force_acquire(&mut self) {
        self.in_flight = self.in_flight.saturating_add(1);
    }

    /// Records that the response of a call has started, and returns the ticket admitted
    /// instead, if any.
    #[must_use = "the ticket's owner waits to be told"]
    pub fn begin_response(&mut self) -> Option<QueueTicket> {
        self.responding = self.responding.saturating_add(1);
        self.admit_next()
    }

    /// Ends a call whose response has started, and returns the ticket admitted instead, if any.
    #[must_use = "the ticket's owner waits to be told"]
    pub fn end_response(&mut self) -> Option<QueueTicket> {
        self.responding = self.responding.saturating_sub(1);
        self.release()
    }

    /// Sets or clears the adaptive limit, and returns the tickets that are admitted now.
    #[must_use = "the tickets' owners wait to be told"]
    pub fn set_adaptive_limit(&mut self, bound: Option<NonZeroU32>) -> Vec<QueueTicket> {
        self.adaptive_limit = bound;
        std::iter::from_fn(|| self.admit_next()).collect()
    }

    /// Ends a call whose response has not started, and returns the ticket admitted instead, if
    /// any.
    #[must_use = "the ticket's owner waits to be told"]
    pub fn release(&mut self) -> Option<QueueTicket> {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.admit_next()
    }

    /// Removes a ticket from the queue.
    ///
    /// Returns `false` if the ticket was already admitted. Its permit must then be released.
    #[must_use = "an admitted ticket must be released"]
    pub fn abandon(&mut self, ticket: QueueTicket) -> bool {
        let position = self.queue.iter().position(|waiting| *waiting == ticket);
        position
            .and_then(|position| self.queue.remove(position))
            .is_some()
    }

    /// Applies new bounds and returns the tickets that are admitted now.
    ///
    /// Calls in flight continue even if they exceed a lower limit.
    #[must_use = "the tickets' owners wait to be told"]
    pub fn reconfigure(&mut self, config: ConcurrencyConfig) -> Vec<QueueTicket> {
        self.config = config;
        std::iter::from_fn(|| self.admit_next()).collect()
    }

    /// Returns the current limit for calls that wait for a response.
    #[must_use]
    pub fn effective_limit(&self) -> NonZeroU32 {
        self.adaptive_limit
            .map_or(self.config.max_in_flight, |lowered| {
                lowered.min(self.config.max_in_flight)
            })
    }

    /// Returns the number of calls in flight whose response has not started.
    #[must_use]
    pub fn awaiting_response(&self) -> u32 {
        self.in_flight.saturating_sub(self.responding)
    }

    fn has_room(&self) -> bool {
        self.awaiting_response() < self.effective_limit().get()
            && self.in_flight < self.config.max_in_flight.get()
    }

    /// Returns the number of calls in flight, including those whose response has started.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Returns the number of queued calls.
    #[must_use]
    pub fn pending(&self) -> u32 {
        u32::try_from(self.queue.len()).unwrap_or(u32::MAX)
    }

    /// Returns the number of calls rejected since the creation of the limit.
    #[must_use]
    pub fn rejected(&self) -> u64 {
        self.rejected
    }

    /// Returns the bounds that the limit currently follows.
    #[must_use]
    pub fn config(&self) -> ConcurrencyConfig {
        self.config
    }

    fn admit_next(&mut self) -> Option<QueueTicket> {
        if !self.has_room() {
            return None;
        }
        let next = self.queue.pop_front()?;
        self.in_flight += 1;
        Some(next)
    }
}

#[cfg(test)]
mod tests;
