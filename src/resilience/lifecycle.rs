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
    Waiting,
    /// The same, and ending what does not end by itself.
    Parting,
    /// Done with its callers.
    Drained,
    /// Done with the app, too.
    Gone,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Self; 6] = [
        Self::Serving,
        Self::Announcing,
        Self::Waiting,
        Self::Parting,
        Self::Drained,
        Self::Gone,
    ];
}

/// What goes on in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests in flight.
    pub in_flight: usize,
    /// When the last one began.
    pub last_began: Option<Instant>,
}

impl Traffic {
    /// Since when it is quiet, if nothing is in flight.
    fn quiet_at(&self, period: Duration, otherwise: Instant) -> Option<Instant> {
        (self.in_flight == 0).then(|| self.last_began.map_or(otherwise, |last| last + period))
    }
}

/// What goes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Of callers.
    pub inbound: Traffic,
    /// Of the app.
    pub outbound: Traffic,
}

/// One drain, from its beginning.
#[derive(Debug, Clone, Copy)]
pub struct Drain {
    config: DrainConfig,
    is_relieved: bool,
    began: Instant,
    stage: Stage,
    is_clean: bool,
    /// Since when the instance is to go once it has drained.
    wanted_gone: Option<Instant>,
}

impl Drain {
    /// Begins to leave.
    #[must_use]
    pub fn begin(config: DrainConfig, now: Instant) -> Self {
        Self {
            config,
            is_relieved: false,
            began: now,
            stage: Stage::Announcing,
            is_clean: false,
            wanted_gone: None,
        }
    }

    /// Begins to finish what is left, after another process took over.
    #[must_use]
    pub fn relieved(config: DrainConfig, now: Instant) -> Self {
        let drain = Self::begin(
            DrainConfig {
                delay: Duration::ZERO,
                ..config
            },
            now,
        );
        Self {
            is_relieved: true,
            wanted_gone: Some(now),
            stage: Stage::Waiting,
            ..drain
        }
    }

    /// Whether another process took over.
    #[must_use]
    pub fn is_relieved(&self) -> bool {
        self.is_relieved
    }

    /// When it began.
    #[must_use]
    pub fn began(&self) -> Instant {
        self.began
    }

    /// When the instance has drained in any case.
    #[must_use]
    pub fn latest(&self) -> Instant {
        self.began + self.config.timeout
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
    pub fn go(&mut self, now: Instant) {
        self.wanted_gone.get_or_insert(now);
    }

    /// Moves on as far as the time and the load allow, and says where to. A stage never comes back.
    pub fn advance(&mut self, load: &Load, now: Instant) -> Stage {
        if self.stage < Stage::Drained {
            let is_quiet = self
                .callers_quiet_at(load)
                .is_some_and(|quiet| now >= quiet);
            self.stage = self.stage.max(match () {
                () if now >= self.latest() || is_quiet => Stage::Drained,
                () if now >= self.began + self.config.soft_timeout => Stage::Parting,
                () if now >= self.began + self.config.delay => Stage::Waiting,
                () => Stage::Announcing,
            });
            self.is_clean = load.inbound.in_flight == 0;
        }
        if self.stage == Stage::Drained && self.gone_at(load).is_some_and(|gone| now >= gone) {
            self.stage = Stage::Gone;
            self.is_clean &= load.outbound.in_flight == 0;
        }
        self.stage
    }

    /// When the stage can next change, if nothing begins or ends before; never if only a wish can change it.
    #[must_use]
    pub fn next_deadline(&self, load: &Load) -> Option<Instant> {
        match self.stage {
            Stage::Serving | Stage::Gone => None,
            Stage::Drained => self.gone_at(load),
            Stage::Announcing | Stage::Waiting | Stage::Parting => {
                let next = match self.stage {
                    Stage::Announcing => Some(self.began + self.config.delay),
                    Stage::Waiting => Some(self.began + self.config.soft_timeout),
                    _ => None,
                };
                [next, self.callers_quiet_at(load), Some(self.latest())]
                    .into_iter()
                    .flatten()
                    .min()
            }
        }
    }

    /// With no request at all there is nothing to be quiet after. Who is relieved serves callers and app alike until both are quiet, for its address
    /// stays and nobody may be refused.
    fn callers_quiet_at(&self, load: &Load) -> Option<Instant> {
        let quiet_at = |traffic: &Traffic| traffic.quiet_at(self.config.quiet_period, self.began);
        let quiet = if self.is_relieved {
            quiet_at(&load.inbound)?.max(quiet_at(&load.outbound)?)
        } else {
            quiet_at(&load.inbound)?
        };
        Some(quiet.max(self.began + self.config.delay))
    }

    /// The app may take as long as its callers could have; who is asked to go after that goes when the app is quiet, or a quiet period later.
    fn gone_at(&self, load: &Load) -> Option<Instant> {
        let wanted = self.wanted_gone?;
        let bound = self.latest().max(wanted + self.config.quiet_period);
        let quiet = load.outbound.quiet_at(self.config.quiet_period, wanted);
        Some(quiet.map_or(bound, |quiet| quiet.max(wanted).min(bound)))
    }
}

#[cfg(test)]
mod tests;
