//! Fault injection: deliberate delays and errors that test how clients react.
//!
//! The keys are those of Envoy Gateway's fault injection. Only a route may have this section,
//! and it is not inherited.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    policy::{
        grpc_code::GrpcCode,
        mode::ModeSetting,
        report::{DiagnosticReport, FieldLocation},
        sections::{
            description::Description,
            section::{FoundSection, Section, SectionContext},
        },
        units::{Percent, PolicyDuration, Timestamp},
    },
    resilience::{Mode, ratio::Ratio},
};

/// Delays or aborts a share of the requests of a route, to test how clients react. It ends by
/// itself at `until`. At least one of `delay` and `abort` is set.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultInjection {
    /// Whether faults are injected. Shadow only counts the requests that would be affected.
    /// Default Enforce.
    #[serde(default)]
    pub mode: ModeSetting,
    /// Time at which the injection ends, like `2026-12-01T00:00:00Z`.
    pub until: Timestamp,
    /// Delay before a share of the requests is forwarded.
    pub delay: Option<FaultDelay>,
    /// Error response for a share of the requests, which are not forwarded.
    pub abort: Option<FaultAbort>,
    /// Maximum number of requests of the route that are affected at the same time, at least 1.
    /// Further requests are forwarded normally. Default 100.
    pub max_active_faults: Option<u32>,
}

/// Injected delay of requests.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultDelay {
    /// Length of the delay, above 0s.
    pub fixed_delay: PolicyDuration,
    /// Share of the requests that is delayed, in percent. Default 100.
    pub percentage: Option<Percent>,
}

/// Injected error response. Exactly one of `httpStatus` and `grpcStatus` is set.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultAbort {
    /// HTTP status of the response, 200 to 599.
    pub http_status: Option<u16>,
    /// gRPC status of the response. The response is a gRPC response, whatever the protocol of
    /// the request is.
    pub grpc_status: Option<GrpcCode>,
    /// Share of the requests that is aborted, in percent. Default 100.
    pub percentage: Option<Percent>,
}

/// Configuration of fault injection for a route.
#[derive(Debug, Clone, PartialEq)]
pub struct FaultInjectionSpec {
    /// Whether faults are injected, only logged, or off.
    pub mode: Mode,
    /// Time after which no faults are injected.
    pub until: SystemTime,
    /// Delay of requests, and the share of the requests that are delayed.
    pub delay: Option<(Duration, Ratio)>,
    /// Status that requests are aborted with, and the share of the requests that are aborted.
    pub abort: Option<(FaultAbortStatus, Ratio)>,
    /// Maximum number of concurrent requests with an injected fault.
    pub max_active_faults: u32,
}

/// Status with which an injected fault aborts a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultAbortStatus {
    /// HTTP status code of the response.
    Http(u16),
    /// gRPC status code; 0, which is success, does not occur.
    Grpc(u8),
}

impl fmt::Display for FaultAbortStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(status) => write!(f, "{status}"),
            Self::Grpc(status) => write!(f, "gRPC status {status}"),
        }
    }
}

impl Section for FaultInjection {
    const KEY: &'static str = "faultInjection";
    type Spec = Option<FaultInjectionSpec>;

    fn compile(
        found: Option<FoundSection<'_, Self>>,
        context: &mut SectionContext<'_>,
    ) -> Option<FaultInjectionSpec> {
        let FoundSection { at, section, .. } = found?;
        if section.delay.is_none() && section.abort.is_none() {
            context
                .report
                .error(&at, "this fault does nothing")
                .hint("add a `delay` or an `abort`");
        }
        let delay = section.delay.as_ref().map(|delay| {
            if delay.fixed_delay.0.is_zero() {
                context
                    .report
                    .error(
                        &at.key("delay").key("fixedDelay"),
                        "a delay must be longer than 0s",
                    )
                    .hint("write a delay like `200ms`");
            }
            (delay.fixed_delay.0, share(delay.percentage))
        });
        let abort = section.abort.as_ref().and_then(|abort| {
            let status = abort.compile_status(&at.key("abort"), context.report)?;
            Some((status, share(abort.percentage)))
        });
        let spec = FaultInjectionSpec {
            mode: section.mode.mode(),
            until: section.until.0,
            delay,
            abort,
            max_active_faults: context
                .report
                .require_at_least_one(&at, "maxActiveFaults", section.max_active_faults, 100)
                .get(),
        };
        (section.mode != ModeSetting::Off).then_some(spec)
    }

    fn describe(spec: &Option<FaultInjectionSpec>) -> Vec<Description> {
        let describe = |fault: &FaultInjectionSpec| {
            let mut description = Description::default()
                .with("mode", fault.mode.name())
                .with("until", Timestamp(fault.until))
                .with("maxActiveFaults", fault.max_active_faults);
            if let Some((delay, share)) = fault.delay {
                description = description
                    .with("delay.fixedDelay", PolicyDuration(delay))
                    .with("delay.percentage", share.percent());
            }
            if let Some((status, share)) = fault.abort {
                description = description
                    .with("abort", status)
                    .with("abort.percentage", share.percent());
            }
            description
        };
        spec.iter().map(describe).collect()
    }
}

impl FaultAbort {
    fn compile_status(
        &self,
        at: &FieldLocation<'_>,
        report: &mut DiagnosticReport,
    ) -> Option<FaultAbortStatus> {
        match (self.http_status, self.grpc_status) {
            (Some(status), None) => {
                report.check_final_status(&at.key("httpStatus"), status);
                Some(FaultAbortStatus::Http(status))
            }
            (None, Some(code)) => Some(FaultAbortStatus::Grpc(code.number())),
            _ => {
                report
                    .error(
                        at,
                        "an abort must have either an `httpStatus` or a `grpcStatus`",
                    )
                    .hint("write one of the two, like `httpStatus: 503`");
                None
            }
        }
    }
}

/// Returns a share of requests; without a percentage it is all of them.
fn share(percent: Option<Percent>) -> Ratio {
    percent.map_or(Ratio::ONE, Percent::ratio)
}
