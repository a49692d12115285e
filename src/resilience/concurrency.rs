//! How many calls may be in flight at once, and how many may wait for a place.
//!
//! A backend that slows down fills its callers' threads, memory and connections; a bound on what is in flight turns that into
//! quick refusals (Little's law: in flight = rate * latency). A short queue in front smooths bursts; it is first come first
//! served and bounded, and how long one waits in it is the caller's business, who holds the clock.
//!
//! | call | room in flight | queue has room | queue full |
//! | --- | --- | --- | --- |
//! | `try_acquire` | admitted | queued | refused |
//! | `release` | the head of the queue, if any, is admitted in its place | | |
//! | `abandon` | a queued ticket leaves the queue; an admitted one must be released | | |
//!
//! Nobody overtakes the queue: while somebody waits, a newcomer queues.
//!
//! The bound can be lowered below what is written, to what a backend bears (`adaptive`). The lower one is for calls that are being worked on: a call
//! whose answer has begun no longer counts against it, and until its end against the written one only. So long answers do not hold it down.

use std::{collections::VecDeque, num::NonZeroU32};

use crate::resilience::shed::PriorityClass;

/// The bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConcurrencyConfig {
    /// Calls in flight at once.
    pub max_in_flight: NonZeroU32,
    /// Calls waiting at once; none means refuse at once.
    pub max_pending: u32,
}

/// A place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QueueTicket(u64);

/// The answer to a newcomer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "an admitted call must be released"]
pub enum ConcurrencyDecision {
    /// In flight; to be given back by [`ConcurrencyLimit::release`].
    Admitted,
    /// In the queue until a release names the ticket, or until it is abandoned.
    Queued(QueueTicket),
    /// Neither.
    Rejected,
}

/// One limit.
#[derive(Debug)]
pub struct ConcurrencyLimit {
    config: ConcurrencyConfig,
    /// The lower bound for calls that are being worked on.
    adaptive_limit: Option<NonZeroU32>,
    in_flight: u32,
    /// Those of them whose answer has begun.
    responding: u32,
    queue: VecDeque<QueueTicket>,
    next_ticket: u64,
    rejected: u64,
}

impl ConcurrencyLimit {
    /// Makes a limit with nothing in flight.
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

    /// Asks for a place.
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

    /// Whether a call of a class may ask for a place: the lower ones fill only a part of the limit.
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

    /// Counts a call that passes whatever the limit says: in shadow mode, what is in flight must still be true.
    pub fn force_acquire(&mut self) {
        self.in_flight = self.in_flight.saturating_add(1);
    }

    /// The answer to a call in flight has begun; the ticket that is admitted now, if somebody waited.
    #[must_use = "the ticket's owner waits to be told"]
    pub fn begin_response(&mut self) -> Option<QueueTicket> {
        self.responding = self.responding.saturating_add(1);
        self.admit_next()
    }

    /// Gives the place of a call back whose answer had begun; the ticket that got it instead, if somebody waited.
    #[must_use = "the ticket's owner waits to be told"]
    pub fn end_response(&mut self) -> Option<QueueTicket> {
        self.responding = self.responding.saturating_sub(1);
        self.release()
    }

    /// Lowers the bound for calls that are being worked on, or no longer; the tickets that now have a place.
    #[must_use = "the tickets' owners wait to be told"]
    pub fn set_adaptive_limit(&mut self, bound: Option<NonZeroU32>) -> Vec<QueueTicket> {
        self.adaptive_limit = bound;
        std::iter::from_fn(|| self.admit_next()).collect()
    }

    /// Gives a place back; the ticket that got it instead, if somebody waited.
    #[must_use = "the ticket's owner waits to be told"]
    pub fn release(&mut self) -> Option<QueueTicket> {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.admit_next()
    }

    /// Leaves the queue. `false` if the ticket was admitted already: then the place must be released.
    #[must_use = "an admitted ticket must be released"]
    pub fn abandon(&mut self, ticket: QueueTicket) -> bool {
        let position = self.queue.iter().position(|waiting| *waiting == ticket);
        position
            .and_then(|position| self.queue.remove(position))
            .is_some()
    }

    /// Follows new bounds; the tickets that now have a place. Calls in flight over a lowered bound run on.
    #[must_use = "the tickets' owners wait to be told"]
    pub fn reconfigure(&mut self, config: ConcurrencyConfig) -> Vec<QueueTicket> {
        self.config = config;
        std::iter::from_fn(|| self.admit_next()).collect()
    }

    /// Calls that may be worked on at once now.
    #[must_use]
    pub fn effective_limit(&self) -> NonZeroU32 {
        self.adaptive_limit
            .map_or(self.config.max_in_flight, |lowered| {
                lowered.min(self.config.max_in_flight)
            })
    }

    /// Calls that are being worked on: in flight, and their answer has not begun.
    #[must_use]
    pub fn awaiting_response(&self) -> u32 {
        self.in_flight.saturating_sub(self.responding)
    }

    fn has_room(&self) -> bool {
        self.awaiting_response() < self.effective_limit().get()
            && self.in_flight < self.config.max_in_flight.get()
    }

    /// Calls in flight.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Calls waiting.
    #[must_use]
    pub fn pending(&self) -> u32 {
        u32::try_from(self.queue.len()).unwrap_or(u32::MAX)
    }

    /// Calls refused since the start.
    #[must_use]
    pub fn rejected(&self) -> u64 {
        self.rejected
    }

    /// What the limit follows.
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
