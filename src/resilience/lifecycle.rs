//! How an instance leaves: announced, and only when nothing is left to do.
//!
//! Callers go on sending for a while after an instance is marked as unready, because the news has to travel. So it first
//! announces itself as draining and serves as before for `delay`; then it waits until nothing is in flight and nothing new came
//! for `quiet_period`, and still serves what comes; streams that would last for ever are ended from `soft_timeout` on; and at
//! `timeout` it has drained in any case. Leaving early when it is quiet, and late when it is not, is what a fixed sleep gets wrong in
//! both directions (istio/istio#36660, cloudflare/pingora#505).
//!
//! To have drained is not to be gone: the app may still ask others while it ends. The instance goes when it is asked to and
//! the app asks nothing any more.
//!
//! | stage | ready | callers are | the app's calls | ends with |
//! | --- | --- | --- | --- | --- |
//! | serving | yes | served | go on | a drain |
//! | announcing | no | served, and told to go | go on | `delay` |
//! | waiting | no | served, and told to go | go on | quiet, or `soft_timeout` |
//! | parting | no | served, long streams are ended | go on | quiet, or `timeout` |
//! | drained | no | refused unprocessed | go on | a wish to go, and quiet of the app |
//! | gone | no | not heard | not heard | - |
//!
//! A process that hands its sockets over to another one is *relieved*: its address does not go away, so nothing has to travel
//! and nobody must be told to go elsewhere; it only finishes what it has.

use std::time::{Duration, Instant};

/// The times of a drain; all of them count from its beginning, except the quiet period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainConfig {
    /// How long to go on as before, because the news has to travel.
    pub delay: Duration,
    /// How long nothing new must have come.
    pub quiet_period: Duration,
    /// From when on streams that do not end by themselves are ended.
    pub soft_timeout: Duration,
    /// When to have drained in any case.
    pub timeout: Duration,
}

impl Default for DrainConfig {
    /// 5 s, 1 s, 15 s and 25 s: within the 30 s that Kubernetes gives a pod.
    fn default() -> Self {
        Self {
            delay: Duration::from_secs(5),
            quiet_period: Duration::from_secs(1),
            soft_timeout: Duration::from_secs(15),
            timeout: Duration::from_secs(25),
        }
    }
}

/// Where an instance is on its way out, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It is not leaving.
    Serving,
    /// Unready, and serving as before.
    Announcing,
    /// Serving what still comes, and waiting for the last of it.
    AwaitingQuiet,
    /// The same, and ending what does not end by itself.
    ClosingStreams,
    /// Done with its callers.
    Drained,
    /// Done with the app, too.
    Terminated,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Self; 6] = [
        Self::Serving,
        Self::Announcing,
        Self::AwaitingQuiet,
        Self::ClosingStreams,
        Self::Drained,
        Self::Terminated,
    ];
}

/// What goes on in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DirectionLoad {
    /// Requests in flight.
    pub in_flight: usize,
    /// When the last one began.
    pub last_started_at: Option<Instant>,
}

impl DirectionLoad {
    /// Since when it is quiet, if nothing is in flight.
    fn quiet_at(&self, period: Duration, if_never_started: Instant) -> Option<Instant> {
        (self.in_flight == 0).then(|| {
            self.last_started_at
                .map_or(if_never_started, |last| last + period)
        })
    }
}

/// What goes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InstanceLoad {
    /// Of callers.
    pub inbound: DirectionLoad,
    /// Of the app.
    pub outbound: DirectionLoad,
}

/// One drain, from its beginning.
#[derive(Debug, Clone, Copy)]
pub struct DrainSequence {
    config: DrainConfig,
    is_handed_over: bool,
    started_at: Instant,
    stage: Stage,
    is_clean: bool,
    /// Since when the instance is to go once it has drained.
    termination_requested_at: Option<Instant>,
}

impl DrainSequence {
    /// Begins to leave.
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

    /// Begins to finish what is left, after another process took over.
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

    /// Whether another process took over.
    #[must_use]
    pub fn is_handed_over(&self) -> bool {
        self.is_handed_over
    }

    /// When it began.
    #[must_use]
    pub fn started_at(&self) -> Instant {
        self.started_at
    }

    /// When the instance has drained in any case.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.started_at + self.config.timeout
    }

    /// The stage that was last reached.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Whether nothing of a caller was left in flight when it had drained, and nothing of the app when it went.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.is_clean
    }

    /// Nobody is left to whom the news would have to travel.
    pub fn skip_delay(&mut self) {
        self.config.delay = Duration::ZERO;
    }

    /// The instance is to go once it has drained. To say so again changes nothing.
    pub fn request_termination(&mut self, now: Instant) {
        self.termination_requested_at.get_or_insert(now);
    }

    /// Moves on as far as the time and the load allow, and says where to. A stage never comes back.
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

    /// When the stage can next change, if nothing begins or ends before; never if only a wish can change it.
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
                [next, self.requests_quiet_at(load), Some(self.deadline())]
                    .into_iter()
                    .flatten()
                    .min()
            }
        }
    }

    /// With no request at all there is nothing to be quiet after. Who is relieved serves callers and app alike until both are quiet, for its address
    /// stays and nobody may be refused.
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

    /// The app may take as long as its callers could have; who is asked to go after that goes when the app is quiet, or a quiet period later.
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
