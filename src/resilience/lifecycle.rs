//! The stages of a drain, from its announcement to the end of the instance.
//!
//! This module decides in which stage a drain is, and when that stage can change. It does not
//! know connections, signals or Kubernetes. The caller passes the load and the time.
//!
//! Clients continue to send requests after an instance becomes unready, because that
//! information takes time to spread. A drain therefore has these steps:
//!
//! 1. The instance announces the drain and serves as before for `delay`.
//! 2. It serves the remaining requests until nothing is in flight and no request has started
//!    for `quiet_period`.
//! 3. From `soft_timeout` on, it closes streams that would not end by themselves.
//! 4. At `timeout` the drain ends in any case.
//!
//! A fixed sleep is too long for a quiet instance and too short for a busy one
//! (istio/istio#36660, cloudflare/pingora#505).
//!
//! A drained instance does not terminate at once, because the app may still send requests while
//! it shuts down. The instance terminates after a request to terminate, and when the app sends
//! no more requests.
//!
//! | stage | ready | inbound requests | outbound requests | ends with |
//! | --- | --- | --- | --- | --- |
//! | serving | yes | served | served | the start of a drain |
//! | announcing | no | served (1) | served | `delay` |
//! | awaiting quiet | no | served (1) | served | quiet, or `soft_timeout` |
//! | closing streams | no | served; long streams are closed | served | quiet, or `timeout` |
//! | drained | no | rejected unprocessed | served | a request to terminate, then quiet |
//! | terminated | no | not accepted | not accepted | - |
//!
//! (1) The instance also makes clients reconnect elsewhere.
//!
//! `timeout` ends every stage before drained, even during `delay`.
//!
//! A drain is *handed over* if a new process has taken over the sockets. The address then
//! remains, so nothing has to be announced and no client has to reconnect. The old process only
//! completes its requests.

use std::time::{Duration, Instant};

use crate::resilience::instants::earliest;

/// Durations of a drain, all from its start, except the quiet period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainConfig {
    /// Time during which the instance serves as before, while clients learn that it is unready.
    pub delay: Duration,
    /// Time without a new request after which a direction with nothing in flight is quiet.
    pub quiet_period: Duration,
    /// Time after which streams are closed that do not end by themselves.
    pub soft_timeout: Duration,
    /// Time after which the instance is drained in any case.
    pub timeout: Duration,
}

impl Default for DrainConfig {
    /// Returns 5 s, 1 s, 15 s and 25 s, within the 30 s that Kubernetes grants a pod by
    /// default.
    fn default() -> Self {
        Self {
            delay: Duration::from_secs(5),
            quiet_period: Duration::from_secs(1),
            soft_timeout: Duration::from_secs(15),
            timeout: Duration::from_secs(25),
        }
    }
}

/// Stage of the lifecycle of an instance, in the order in which stages follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The instance is not draining.
    Serving,
    /// The instance is unready and serves as before.
    Announcing,
    /// The instance serves remaining requests until the inbound direction is quiet.
    AwaitingQuiet,
    /// The instance also closes streams that do not end by themselves.
    ClosingStreams,
    /// The instance accepts no inbound requests any more, but still serves the app.
    Drained,
    /// The instance serves neither direction and can exit.
    Terminated,
}

impl Stage {
    /// All stages, in order.
    pub const ALL: [Self; 6] = [
        Self::Serving,
        Self::Announcing,
        Self::AwaitingQuiet,
        Self::ClosingStreams,
        Self::Drained,
        Self::Terminated,
    ];
}

/// Requests in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DirectionLoad {
    /// Number of requests in flight.
    pub in_flight: usize,
    /// Start of the latest request, or `None` if there was none.
    pub last_started_at: Option<Instant>,
}

impl DirectionLoad {
    /// Returns the time from which the direction is quiet, or `None` while requests are in
    /// flight.
    fn quiet_at(&self, period: Duration, if_never_started: Instant) -> Option<Instant> {
        (self.in_flight == 0).then(|| {
            self.last_started_at
                .map_or(if_never_started, |last| last + period)
        })
    }
}

/// Requests in both directions of an instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InstanceLoad {
    /// Requests from clients to the app.
    pub inbound: DirectionLoad,
    /// Requests from the app to backends.
    pub outbound: DirectionLoad,
}

/// A drain from its start to the termination of the instance.
#[derive(Debug, Clone, Copy)]
pub struct DrainSequence {
    config: DrainConfig,
    is_handed_over: bool,
    started_at: Instant,
    stage: Stage,
    is_clean: bool,
    /// Time of the first request to terminate, or `None` if the instance keeps running.
    termination_requested_at: Option<Instant>,
}

impl DrainSequence {
    /// Starts a drain in the stage [`Stage::Announcing`].
    #[must_use]
    pub fn begin(config: DrainConfig, now: Instant) -> Self {
        Self {
            config,
            is_handed_over: false,
            started_at: now,
            stage: Stage::Announcing,
            is_clean: false,
            termination_requested_at: None,
        }
    }

    /// Starts a drain of a process whose sockets a new process has taken over.
    ///
    /// The drain has no delay, starts in [`Stage::AwaitingQuiet`] and terminates by itself.
    #[must_use]
    pub fn begin_handed_over(config: DrainConfig, now: Instant) -> Self {
        let drain = Self::begin(
            DrainConfig {
                delay: Duration::ZERO,
                ..config
            },
            now,
        );
        Self {
            is_handed_over: true,
            termination_requested_at: Some(now),
            stage: Stage::AwaitingQuiet,
            ..drain
        }
    }

    /// Returns whether a new process has taken over the sockets.
    #[must_use]
    pub fn is_handed_over(&self) -> bool {
        self.is_handed_over
    }

    /// Returns the time at which the drain started.
    #[must_use]
    pub fn started_at(&self) -> Instant {
        self.started_at
    }

    /// Returns the time at which the instance is drained in any case.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.started_at + self.config.timeout
    }

    /// Returns the stage that the drain reached at the latest call of
    /// [`DrainSequence::advance`].
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Returns whether no request was interrupted.
    ///
    /// This is true if nothing inbound was in flight when the instance became drained. After
    /// termination it also requires that nothing outbound was in flight.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.is_clean
    }

    /// Ends the delay at once, because no client has to learn that the instance is unready.
    pub fn skip_delay(&mut self) {
        self.config.delay = Duration::ZERO;
    }

    /// Requests that the instance terminates after the drain. Only the first request has an
    /// effect.
    pub fn request_termination(&mut self, now: Instant) {
        self.termination_requested_at.get_or_insert(now);
    }

    /// Advances the stage as far as the time and the load allow, and returns it.
    ///
    /// The stage never goes back.
    pub fn advance(&mut self, load: &InstanceLoad, now: Instant) -> Stage {
        if self.stage < Stage::Drained {
            let is_quiet = self
                .requests_quiet_at(load)
                .is_some_and(|quiet| now >= quiet);
            self.stage = self.stage.max(match () {
                () if now >= self.deadline() || is_quiet => Stage::Drained,
                () if now >= self.started_at + self.config.soft_timeout => Stage::ClosingStreams,
                () if now >= self.started_at + self.config.delay => Stage::AwaitingQuiet,
                () => Stage::Announcing,
            });
            self.is_clean = load.inbound.in_flight == 0;
        }
        if self.stage == Stage::Drained && self.terminated_at(load).is_some_and(|gone| now >= gone)
        {
            self.stage = Stage::Terminated;
            self.is_clean &= load.outbound.in_flight == 0;
        }
        self.stage
    }

    /// Returns the earliest time at which the stage can change without a change of the load.
    ///
    /// Returns `None` if only a request to terminate can change it, or if nothing can.
    #[must_use]
    pub fn next_deadline(&self, load: &InstanceLoad) -> Option<Instant> {
        match self.stage {
            Stage::Serving | Stage::Terminated => None,
            Stage::Drained => self.terminated_at(load),
            Stage::Announcing | Stage::AwaitingQuiet | Stage::ClosingStreams => {
                let next = match self.stage {
                    Stage::Announcing => Some(self.started_at + self.config.delay),
                    Stage::AwaitingQuiet => Some(self.started_at + self.config.soft_timeout),
                    _ => None,
                };
                earliest([next, self.requests_quiet_at(load), Some(self.deadline())])
            }
        }
    }

    /// Returns the time from which requests are quiet, or `None` while some are in flight.
    ///
    /// An instance without any request is quiet from the start. A drain that is handed over
    /// waits for both directions, because its address remains and no request may be rejected.
    fn requests_quiet_at(&self, load: &InstanceLoad) -> Option<Instant> {
        let quiet_at =
            |traffic: &DirectionLoad| traffic.quiet_at(self.config.quiet_period, self.started_at);
        let quiet = if self.is_handed_over {
            quiet_at(&load.inbound)?.max(quiet_at(&load.outbound)?)
        } else {
            quiet_at(&load.inbound)?
        };
        Some(quiet.max(self.started_at + self.config.delay))
    }

    /// Returns the time at which a drained instance terminates, or `None` without a request to
    /// do so.
    ///
    /// The bound is the deadline of the drain. After a later request to terminate, the bound is
    /// one quiet period after that request.
    fn terminated_at(&self, load: &InstanceLoad) -> Option<Instant> {
        let requested_at = self.termination_requested_at?;
        let bound = self.deadline().max(requested_at + self.config.quiet_period);
        let quiet = load
            .outbound
            .quiet_at(self.config.quiet_period, requested_at);
        Some(quiet.map_or(bound, |quiet| quiet.max(requested_at).min(bound)))
    }
}

#[cfg(test)]
mod tests;
