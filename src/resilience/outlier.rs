//! Which endpoints are no longer asked because of how they answer.
//!
//! An active check asks whether an endpoint lives; this looks at what it does with real requests. Runs of failures are counted
//! with every result; rates and latencies are compared with those of its peers in a sweep ([`sweep`]). Who is found out is ejected
//! for a while, longer each time. It does not come back with full traffic: when its time is over it is on *probation*, and one
//! request at a time may try it. One success readmits it, one failure ejects it again.
//!
//! | standing | a result | time over |
//! | --- | --- | --- |
//! | in | may end a run of failures, which may eject | - |
//! | ejected | counts nothing | probation |
//! | probation | of the probe: in, or ejected for longer; of others: counts nothing | - |
//!
//! Each ejection begins a new generation, and a permit carries the one it was given in, so that a result that comes late
//! neither ejects nor readmits. A probe that is given up gives its place back.
//!
//! Who may be ejected at all is a question about all endpoints of a backend, see [`may_eject`]: never the last one, and not more
//! than a share of them. Unlike Envoy's share, which makes none of three at ten percent, at least one may be ejected if there are
//! two (envoyproxy/envoy#21142 and the defaults' table in `outlier_detection.proto`).

mod config;
mod latency;
mod sweep;

use std::time::{Duration, Instant};

pub use self::{
    config::{FailurePercentage, InvalidOutlier, OutlierConfig, Runs, SuccessRate},
    latency::Latencies,
    sweep::{Record, may_eject, sweep},
};

/// Successes in an interval that prove an endpoint well enough to forget one of its ejections. Time alone proves nothing
/// (envoyproxy/envoy#21142).
const PROOF: u32 = 10;

/// Ejections that still lengthen the next one; only to keep the arithmetic small, the maximum is reached long before.
const MAX_TIMES: u32 = 1_000;

/// The share by which an ejection is lengthened at random, so that several endpoints do not come back at once.
const JITTER: f64 = 0.1;

/// A request that waits for an idempotent one to be the probe waits no longer than this.
const PATIENCE: Duration = Duration::from_secs(1);

/// How an attempt ended, as far as the endpoint is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempted {
    /// An answer that is no failure of the endpoint.
    Success,
    /// A 502, 503 or 504.
    GatewayError,
    /// Another 5xx.
    ServerError,
    /// No answer: no connection, a reset, a timeout.
    LocalOrigin,
    /// A 429: it lives, and is asked too much.
    Throttled,
    /// Given up by the client or by us; says nothing.
    Cancelled,
}

/// Why an endpoint is ejected, with the numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cause {
    /// So many failures in a row, whatever they were.
    Consecutive5xx(u32),
    /// So many 502, 503 and 504 in a row.
    ConsecutiveGatewayErrors(u32),
    /// So many attempts without an answer in a row.
    ConsecutiveLocalOriginFailures(u32),
    /// Its success rate is far below that of its peers; both in percent.
    SuccessRate {
        /// Its own.
        rate: f64,
        /// The lowest that would pass.
        limit: f64,
    },
    /// Its share of failures is too high; both in percent.
    FailurePercentage {
        /// Its own.
        rate: f64,
        /// The highest that would pass.
        limit: f64,
    },
    /// It is far slower than its peers.
    Slow {
        /// Its own 90th percentile.
        p90: Duration,
        /// The median of those of its peers.
        peers: Duration,
    },
    /// It failed its probe.
    Probe,
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Consecutive5xx(run) => write!(f, "{run} failures in a row"),
            Self::ConsecutiveGatewayErrors(run) => write!(f, "{run} gateway errors in a row"),
            Self::ConsecutiveLocalOriginFailures(run) => write!(f, "{run} attempts in a row without an answer"),
            Self::SuccessRate { rate, limit } => write!(f, "its success rate of {rate:.1} % is below {limit:.1} %, the mean of its peers less the deviation"),
            Self::FailurePercentage { rate, limit } => write!(f, "{rate:.1} % of its answers are failures, {limit:.1} % is the limit"),
            Self::Slow { p90, peers } => write!(f, "its p90 of {p90:.1?} is far above {peers:.1?}, the median of its peers"),
            Self::Probe => f.write_str("it failed its probe"),
        }
    }
}

/// What an endpoint may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Everything.
    In,
    /// Nothing, until then.
    Ejected {
        /// The end of it.
        until: Instant,
    },
    /// One request at a time.
    Probation {
        /// When it began.
        since: Instant,
        /// Whether the one is out.
        is_probing: bool,
    },
}

/// The right to count one result.
#[derive(Debug)]
#[must_use = "a permit that is not settled keeps a probe's place"]
pub struct HostPermit {
    generation: u64,
    is_probe: bool,
}

/// What a result does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    /// Nothing.
    Stays,
    /// The endpoint should be ejected, if it may be.
    Suspect(Cause),
    /// It failed its probe and is ejected again, for so long.
    Again(Duration),
    /// It passed its probe.
    Readmitted,
}

/// What is known of one endpoint.
#[derive(Debug, Clone)]
pub struct Host {
    standing: Standing,
    generation: u64,
    failures: u32,
    gateway_errors: u32,
    local_origin: u32,
    times_ejected: u32,
    /// Of the interval that is under way.
    record: Record,
}

impl Default for Host {
    fn default() -> Self {
        Self { standing: Standing::In, generation: 0, failures: 0, gateway_errors: 0, local_origin: 0, times_ejected: 0, record: Record::default() }
    }
}

impl Host {
    /// What the endpoint may be used for.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// Ejections that lengthen the next one.
    #[must_use]
    pub fn times_ejected(&self) -> u32 {
        self.times_ejected
    }

    /// The right to count one result of an endpoint that is in.
    pub fn admit(&self) -> HostPermit {
        HostPermit { generation: self.generation, is_probe: false }
    }

    /// The place of the probe, if the endpoint is on probation and it is free. A request that could not be repeated takes it only if
    /// none that could has come for a while.
    pub fn try_probe(&mut self, is_repeatable: bool, now: Instant) -> Option<HostPermit> {
        let Standing::Probation { since, is_probing: false } = self.standing else { return None };
        if !is_repeatable && now < since + PATIENCE {
            return None;
        }
        self.standing = Standing::Probation { since, is_probing: true };
        Some(HostPermit { generation: self.generation, is_probe: true })
    }

    /// Counts a result. `random` is uniform in `0..1`.
    pub fn settle(&mut self, config: &OutlierConfig, permit: &HostPermit, result: Attempted, took: Duration, now: Instant, random: f64) -> Verdict {
        if permit.generation != self.generation {
            return Verdict::Stays;
        }
        if permit.is_probe {
            return self.settle_probe(config, result, now, random);
        }
        if result == Attempted::Cancelled || self.standing != Standing::In {
            return Verdict::Stays;
        }
        let result = if result == Attempted::Throttled { Attempted::Success } else { result };
        self.record.add(result == Attempted::Success, took);
        self.count_runs(result);
        let reached = |run: u32, limit: u32| limit > 0 && run >= limit;
        let Runs { failures, gateway_errors, local_origin } = config.runs();
        if reached(self.failures, failures) {
            Verdict::Suspect(Cause::Consecutive5xx(self.failures))
        } else if reached(self.gateway_errors, gateway_errors) {
            Verdict::Suspect(Cause::ConsecutiveGatewayErrors(self.gateway_errors))
        } else if reached(self.local_origin, local_origin) {
            Verdict::Suspect(Cause::ConsecutiveLocalOriginFailures(self.local_origin))
        } else {
            Verdict::Stays
        }
    }

    /// Ejects it; for how long.
    pub fn eject(&mut self, config: &OutlierConfig, now: Instant, random: f64) -> Duration {
        self.times_ejected = (self.times_ejected + 1).min(MAX_TIMES);
        let long = config.ejection(self.times_ejected).mul_f64(1.0 + JITTER * random);
        self.standing = Standing::Ejected { until: now + long };
        self.begin_anew();
        long
    }

    /// Ends an ejection whose time is over; whether it did.
    pub fn tick(&mut self, now: Instant) -> bool {
        match self.standing {
            Standing::Ejected { until } if now >= until => {
                self.standing = Standing::Probation { since: now, is_probing: false };
                true
            }
            _ => false,
        }
    }

    /// Lets it in again whatever it did, as when nobody watches any more; whether it was out.
    pub fn pardon(&mut self) -> bool {
        let was_out = self.standing != Standing::In;
        self.standing = Standing::In;
        self.times_ejected = 0;
        self.begin_anew();
        was_out
    }

    /// Ends an interval: what was recorded in it, and the next one begins. An interval of proven health takes one ejection back.
    pub fn end_interval(&mut self) -> Record {
        let record = std::mem::take(&mut self.record);
        if self.standing == Standing::In && record.successes() >= PROOF && record.failures() == 0 {
            self.times_ejected = self.times_ejected.saturating_sub(1);
        }
        record
    }

    fn settle_probe(&mut self, config: &OutlierConfig, result: Attempted, now: Instant, random: f64) -> Verdict {
        match result {
            Attempted::Success | Attempted::Throttled => {
                self.standing = Standing::In;
                self.begin_anew();
                Verdict::Readmitted
            }
            Attempted::Cancelled => {
                if let Standing::Probation { since, .. } = self.standing {
                    self.standing = Standing::Probation { since, is_probing: false };
                }
                Verdict::Stays
            }
            Attempted::GatewayError | Attempted::ServerError | Attempted::LocalOrigin => Verdict::Again(self.eject(config, now, random)),
        }
    }

    fn count_runs(&mut self, result: Attempted) {
        let grow = |run: &mut u32, goes_on: bool| *run = if goes_on { run.saturating_add(1) } else { 0 };
        grow(&mut self.failures, result != Attempted::Success);
        grow(&mut self.gateway_errors, result == Attempted::GatewayError);
        grow(&mut self.local_origin, result == Attempted::LocalOrigin);
    }

    fn begin_anew(&mut self) {
        self.generation += 1;
        (self.failures, self.gateway_errors, self.local_origin) = (0, 0, 0);
        self.record = Record::default();
    }
}

#[cfg(test)]
mod tests;
