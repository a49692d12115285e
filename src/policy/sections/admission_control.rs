//! Admission control: the rejection of a share of the requests while a backend fails.
//!
//! The keys are those of Envoy Gateway's admission control. The formula is in
//! `resilience/admission`; this module does not know it.

use std::{sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    policy::{
        mode::ModeSetting,
        sections::{
            description::{Description, describe_state},
            origin::SectionOrigin,
            section::{FoundSection, Section, SectionContext},
        },
        units::{Percent, PolicyDuration, duration_or},
    },
    resilience::{Mode, admission::AdmissionConfig, ratio::Ratio},
};

/// Minimum length of the window: fewer attempts than those of a second are no evidence.
const MIN_WINDOW: Duration = Duration::from_secs(1);

/// Rejects a share of the requests while the success rate of a backend is too low.
///
/// The share rises with the failures. A circuit breaker, in contrast, rejects all requests or
/// none. A rejected client receives 503 with the reason `admission_control`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AdmissionControl {
    /// Whether the sidecar rejects requests. Shadow only counts the requests that would be
    /// rejected. Default Enforce.
    pub mode: ModeSetting,
    /// Window over which attempts are counted, at least 1s. Default 30s.
    pub sampling_window: Option<PolicyDuration>,
    /// Success rate in percent below which requests are rejected, above 0. The breaker's
    /// `failureCodes` define failures; a 429 is not one. Default 95.
    pub min_success_rate: Option<Percent>,
    /// Shape of the rejected share, above 0. At 1 the share rises linearly with the failures;
    /// above 1 it rises earlier. Default 1.
    pub rejection_aggression: Option<f64>,
    /// Attempts per second in the window below which no request is rejected. Default 5.
    pub min_request_rate: Option<u32>,
    /// Maximum share of requests that are rejected, in percent. Default 80.
    pub max_rejection_percent: Option<Percent>,
}

/// Admission control, which rejects a share of the requests while a backend fails.
#[derive(Debug, Clone, PartialEq)]
pub struct AdmissionControlSpec {
    /// Whether admission control is enforced, only logged, or off.
    pub mode: Mode,
    /// Window, success rate threshold and maximum share of rejections.
    pub config: AdmissionConfig,
    /// Name of the state; sections with the same name share the window.
    pub name: Arc<str>,
    /// Source of the section.
    pub origin: SectionOrigin,
}

impl Section for AdmissionControl {
    const KEY: &'static str = "admissionControl";
    type Spec = Option<AdmissionControlSpec>;

    fn compile(
        found: Option<FoundSection<'_, Self>>,
        context: &mut SectionContext<'_>,
    ) -> Option<AdmissionControlSpec> {
        let FoundSection {
            origin,
            at,
            section,
        } = found?;
        let window = duration_or(section.sampling_window, Duration::from_secs(30));
        let min_success_rate = section.min_success_rate.unwrap_or(Percent(95.0)).ratio();
        let aggression = section.rejection_aggression.unwrap_or(1.0);
        if window < MIN_WINDOW {
            context
                .report
                .error(&at.key("samplingWindow"), "the window must be at least 1s")
                .hint("30s is the default");
        }
        if min_success_rate <= Ratio::ZERO {
            context
                .report
                .error(
                    &at.key("minSuccessRate"),
                    "with 0, no request would ever be rejected",
                )
                .hint("95 is the default; `mode: Off` disables admission control");
        }
        if !(aggression.is_finite() && aggression > 0.0) {
            context
                .report
                .error(
                    &at.key("rejectionAggression"),
                    "`rejectionAggression` must be a number above 0",
                )
                .hint("1 is the default");
        }
        let spec = AdmissionControlSpec {
            mode: section.mode.mode(),
            config: AdmissionConfig {
                window: window.max(MIN_WINDOW),
                min_success_rate,
                aggression,
                min_request_rate: section.min_request_rate.unwrap_or(5),
                max_rejection: section
                    .max_rejection_percent
                    .unwrap_or(Percent(80.0))
                    .ratio(),
            },
            name: origin.state_name(context.backend),
            origin,
        };
        (section.mode != ModeSetting::Off).then_some(spec)
    }

    fn describe(spec: &Option<AdmissionControlSpec>) -> Vec<Description> {
        let describe = |admission: &AdmissionControlSpec| {
            let config = &admission.config;
            Description::default()
                .with("mode", admission.mode.name())
                .with("samplingWindow", PolicyDuration(config.window))
                .with("minSuccessRate", config.min_success_rate.percent())
                .with("rejectionAggression", config.aggression)
                .with("minRequestRate", config.min_request_rate)
                .with("maxRejectionPercent", config.max_rejection.percent())
                .with("state", &admission.name)
                .with_origin(&admission.origin)
        };
        spec.iter().map(describe).collect()
    }

    fn describe_state_change(
        old: &Option<AdmissionControlSpec>,
        new: &Option<AdmissionControlSpec>,
    ) -> String {
        let (Some(old), Some(new)) = (old, new) else {
            return String::new();
        };
        let is_retained = old.config == new.config;
        describe_state(
            &old.name,
            &new.name,
            is_retained,
            ["its counts are retained", "its counts are reset"],
        )
    }
}
