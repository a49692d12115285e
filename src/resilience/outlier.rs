//! Which endpoints are no longer asked because of how they answer.
//!
//! An active check asks whether an endpoint lives; this looks at what it does with real requests. Runs of failures are counted
//! with every result; rates are compared with those of its peers once an interval ([`by_results`]), latencies twice ([`by_latency`]):
//! in a full interval the answers from before would hide for too long that an endpoint has become slow. Who is found out is ejected
//! for a while, longer each time it is found out anew. It does not come back with full traffic: when its time is over it is on
//! *probation*, and one request at a time may try it. One success readmits it, one failure ejects it again for the shortest time, so
//! that one that has healed is not left alone for long. One that was too slow has to be quick.
//!
//! | standing | a result | time over |
//! | --- | --- | --- |
//! | in | may end a run of failures, which may eject | - |
//! | ejected | counts nothing | probation |
//! | probation | of the probe: in, or ejected again; of others: counts nothing | - |
//!
//! Each ejection begins a new generation, and a permit carries the one it was given in, so that a result that comes late
//! neither ejects nor readmits. A probe that is given up gives its place back, and so does one of which nothing is heard for long.
//!
//! Who may be ejected at all is a question about all endpoints of a backend, see [`may_eject`]: never the last one, and not more
//! than a share of them. Unlike Envoy's share, which makes none of three at ten percent, at least one may be ejected if there are
//! two (envoyproxy/envoy#21142 and the defaults' table in `outlier_detection.proto`).

mod cause;
mod config;
mod latency;
mod sweep;

use std::time::{Duration, Instant};

use super::latencies::Latencies;

pub use self::{
    cause::Cause,
    config::{FailurePercentage, InvalidOutlier, OutlierConfig, Runs, SuccessRate},
    sweep::{Record, by_latency, by_results, may_eject},
};

/// Successes that prove an endpoint well enough to forget one of its ejections, with at most one failure for each hundred of them.
/// Time alone proves nothing (envoyproxy/envoy#21142).
const PROOF: u32 = 10;
const FAILURES_PER_PROOF: f64 = 0.01;

/// Half intervals over which latencies are gathered until they are enough to judge.
const GATHERED: u32 = 6;

/// After so long without a result, another request may be the probe.
const PROBE_TIME: Duration = Duration::from_secs(10);

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
    /// Given up by the client or by us; says no more than that it takes at least as long as was waited.
    Cancelled,
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
        /// When the one was let out, if it is.
        probing: Option<Instant>,
    },
}

/// The right to count one result.
#[derive(Debug)]
#[must_use = "a permit that is not settled keeps a probe's place"]
pub struct HostPermit {
    generation: u64,
    is_probe: bool,
}

impl HostPermit {
    /// Whether the endpoint's return hangs on this result.
    #[must_use]
    pub fn is_probe(&self) -> bool {
        self.is_probe
    }
}

/// What a result does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    /// Nothing.
    Stays,
    /// The endpoint should be ejected, if it may be.
    Suspect(Cause),
    /// It failed its probe and is ejected again, for so long.
    Again(Cause, Duration),
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
    latencies: Latencies,
    /// Half intervals over which these were gathered so far, before the one that is under way.
    gathered: u32,
    /// Successes and failures since an ejection was last taken back.
    proof: (u32, u32),
    /// What a probe may take, of one that was too slow.
    bar: Option<Duration>,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            standing: Standing::In,
            generation: 0,
            failures: 0,
            gateway_errors: 0,
            local_origin: 0,
            times_ejected: 0,
            record: Record::default(),
            latencies: Latencies::default(),
            gathered: 0,
            proof: (0, 0),
            bar: None,
        }
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
        HostPermit {
            generation: self.generation,
            is_probe: false,
        }
    }

    /// The place of the probe, if the endpoint is on probation and it is free. A request that could not be repeated takes it only if
    /// none that could has come for a while.
    pub fn try_probe(&mut self, is_repeatable: bool, now: Instant) -> Option<HostPermit> {
        let Standing::Probation { since, probing } = self.standing else {
            return None;
        };
        let is_taken = probing.is_some_and(|begun| now < begun + PROBE_TIME);
        if is_taken || (!is_repeatable && now < since + PATIENCE) {
            return None;
        }
        // What an earlier one may still tell comes too late.
        self.generation += 1;
        self.standing = Standing::Probation {
            since,
            probing: Some(now),
        };
        Some(HostPermit {
            generation: self.generation,
            is_probe: true,
        })
    }

    /// Counts a result. `random` is uniform in `0..1`.
    pub fn settle(
        &mut self,
        config: &OutlierConfig,
        permit: &HostPermit,
        result: Attempted,
        took: Duration,
        now: Instant,
        random: f64,
    ) -> Verdict {
        if permit.generation != self.generation {
            return Verdict::Stays;
        }
        if permit.is_probe {
            return self.settle_probe(config, result, took, now, random);
        }
        if self.standing != Standing::In {
            return Verdict::Stays;
        }
        self.record.add(result);
        self.latencies.observe(result, took);
        let result = match result {
            Attempted::Cancelled => return Verdict::Stays,
            Attempted::Throttled => Attempted::Success,
            other => other,
        };
        self.count_runs(result);
        let reached = |run: u32, limit: u32| limit > 0 && run >= limit;
        let Runs {
            failures,
            gateway_errors,
            local_origin,
        } = config.runs();
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
    pub fn eject(
        &mut self,
        config: &OutlierConfig,
        cause: Cause,
        now: Instant,
        random: f64,
    ) -> Duration {
        self.times_ejected = (self.times_ejected + 1).min(MAX_TIMES);
        self.bar = match cause {
            Cause::Slow { limit, .. } => Some(limit),
            _ => None,
        };
        self.leave_out(config.ejection(self.times_ejected), now, random)
    }

    /// Ends an ejection whose time is over; whether it did.
    pub fn tick(&mut self, now: Instant) -> bool {
        match self.standing {
            Standing::Ejected { until } if now >= until => {
                self.standing = Standing::Probation {
                    since: now,
                    probing: None,
                };
                true
            }
            _ => false,
        }
    }

    /// Lets it in again whatever it did, as when nobody watches any more.
    pub fn pardon(&mut self) {
        (self.standing, self.times_ejected, self.bar) = (Standing::In, 0, None);
        self.begin_anew();
    }

    /// Ends half an interval: the latencies of late, and the next half begins. They are kept for it while they are too few.
    pub fn end_half_interval(&mut self) -> Latencies {
        let is_over = self.latencies.are_enough() || self.gathered + 1 == GATHERED;
        self.gathered = if is_over { 0 } else { self.gathered + 1 };
        if is_over {
            std::mem::take(&mut self.latencies)
        } else {
            self.latencies.clone()
        }
    }

    /// Ends an interval: what was recorded in it, and the next one begins. Proven health takes one ejection back.
    pub fn end_interval(&mut self) -> Record {
        let record = std::mem::take(&mut self.record);
        let (successes, failures) = (
            self.proof.0.saturating_add(record.successes()),
            self.proof.1.saturating_add(record.failures()),
        );
        let is_well = f64::from(failures) <= f64::from(successes) * FAILURES_PER_PROOF;
        if self.standing == Standing::In && is_well && successes >= PROOF {
            self.times_ejected = self.times_ejected.saturating_sub(1);
        }
        self.proof = if is_well && successes < PROOF {
            (successes, failures)
        } else {
            (0, 0)
        };
        record
    }

    fn settle_probe(
        &mut self,
        config: &OutlierConfig,
        result: Attempted,
        took: Duration,
        now: Instant,
        random: f64,
    ) -> Verdict {
        let cause = match (result, self.bar) {
            (Attempted::Cancelled, _) => {
                if let Standing::Probation { since, .. } = self.standing {
                    self.standing = Standing::Probation {
                        since,
                        probing: None,
                    };
                }
                return Verdict::Stays;
            }
            (Attempted::Success | Attempted::Throttled, Some(limit)) if took > limit => {
                Cause::SlowProbe { took, limit }
            }
            (Attempted::Success | Attempted::Throttled, _) => {
                (self.standing, self.bar) = (Standing::In, None);
                self.begin_anew();
                return Verdict::Readmitted;
            }
            (Attempted::GatewayError | Attempted::ServerError | Attempted::LocalOrigin, _) => {
                Cause::Probe
            }
        };
        Verdict::Again(cause, self.leave_out(config.ejection(1), now, random))
    }

    fn leave_out(&mut self, long: Duration, now: Instant, random: f64) -> Duration {
        let long = long.mul_f64(1.0 + JITTER * random);
        self.standing = Standing::Ejected { until: now + long };
        self.begin_anew();
        long
    }

    fn count_runs(&mut self, result: Attempted) {
        let grow =
            |run: &mut u32, goes_on: bool| *run = if goes_on { run.saturating_add(1) } else { 0 };
        grow(&mut self.failures, result != Attempted::Success);
        grow(&mut self.gateway_errors, result == Attempted::GatewayError);
        grow(&mut self.local_origin, result == Attempted::LocalOrigin);
    }

    fn begin_anew(&mut self) {
        self.generation += 1;
        (self.failures, self.gateway_errors, self.local_origin) = (0, 0, 0);
        (self.record, self.proof) = (Record::default(), (0, 0));
        (self.latencies, self.gathered) = (Latencies::default(), 0);
    }
}

#[cfg(test)]
mod tests;
