//! Hedging: a further attempt before the first one has failed.
//!
//! The keys follow gRPC's hedging policy (gRFC A6). The delay is estimated in
//! `resilience/hedge`.

use std::{num::NonZeroU32, sync::Arc};

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
        units::{PolicyDuration, StatusRange, StatusSet},
    },
    resilience::{Mode, hedge::HedgeConfig},
};

/// Sends a further attempt to another endpoint if a response is late. The first response wins,
/// and the other attempts are cancelled.
///
/// Only idempotent requests without a body are hedged. Each further attempt consumes the retry
/// budget, and a hedged request is not retried.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Hedging {
    /// Whether further attempts are sent. Shadow only counts the requests that would be hedged.
    /// Default Enforce.
    pub mode: ModeSetting,
    /// Maximum number of attempts, including the first, 2 to 5. Default 2.
    pub max_attempts: Option<u32>,
    /// Time before each further attempt, above 0s. Default the 95th percentile of the backend's
    /// latency in the last minute. Until 50 latencies are known, no request is hedged.
    pub hedging_delay: Option<PolicyDuration>,
    /// Statuses that do not end the request while another attempt is in flight or still
    /// permitted. The next attempt then starts at once. Default 502, 503, 504.
    pub non_fatal_codes: Option<Vec<StatusRange>>,
}

/// Configuration of hedging, which sends additional attempts while a response is late.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HedgingSpec {
    /// Whether hedges are sent, only logged, or off.
    pub mode: Mode,
    /// Maximum number of attempts, and the delay before each.
    pub config: HedgeConfig,
    /// HTTP statuses that are not used as the response while another attempt is in flight.
    pub non_fatal_codes: StatusSet,
    /// Name of the state; sections with the same name share the latency estimate.
    pub name: Arc<str>,
    /// Source of the section.
    pub origin: SectionOrigin,
}

impl Section for Hedging {
    const KEY: &'static str = "hedging";
    type Spec = Option<HedgingSpec>;

    fn compile(
        found: Option<FoundSection<'_, Self>>,
        context: &mut SectionContext<'_>,
    ) -> Option<HedgingSpec> {
        let FoundSection {
            origin,
            at,
            section,
        } = found?;
        let max_attempts = section.max_attempts.unwrap_or(2);
        if !(2..=5).contains(&max_attempts) {
            context
                .report
                .error(&at.key("maxAttempts"), "`maxAttempts` must be from 2 to 5")
                .hint("write 2 to 5, including the first attempt");
        }
        if section.hedging_delay.is_some_and(|delay| delay.0.is_zero()) {
            context
                .report
                .error(
                    &at.key("hedgingDelay"),
                    "without a delay, every request would be sent twice",
                )
                .hint(
                    "write a delay like `80ms`, or remove the field to derive it from the latency",
                );
        }
        let default_codes = [StatusRange::from_bounds(502, 504)];
        let spec = HedgingSpec {
            mode: section.mode.mode(),
            config: HedgeConfig {
                max_attempts: NonZeroU32::new(max_attempts).unwrap_or(NonZeroU32::MIN),
                delay: section.hedging_delay.map(|span| span.0),
            },
            non_fatal_codes: section
                .non_fatal_codes
                .as_deref()
                .unwrap_or(&default_codes)
                .iter()
                .collect(),
            name: origin.state_name(context.backend),
            origin,
        };
        (section.mode != ModeSetting::Off).then_some(spec)
    }

    fn describe(spec: &Option<HedgingSpec>) -> Vec<Description> {
        let describe = |hedging: &HedgingSpec| {
            let delay = hedging.config.delay.map_or_else(
                || "the 95th percentile of the latency".to_owned(),
                |delay| PolicyDuration(delay).to_string(),
            );
            Description::default()
                .with("mode", hedging.mode.name())
                .with("maxAttempts", hedging.config.max_attempts)
                .with("hedgingDelay", delay)
                .with(
                    "nonFatalCodes",
                    format_args!("[{}]", hedging.non_fatal_codes),
                )
                .with("state", &hedging.name)
                .with_origin(&hedging.origin)
        };
        spec.iter().map(describe).collect()
    }

    fn describe_state_change(old: &Option<HedgingSpec>, new: &Option<HedgingSpec>) -> String {
        let (Some(old), Some(new)) = (old, new) else {
            return String::new();
        };
        let retained = "its latencies are retained";
        describe_state(&old.name, &new.name, true, [retained, retained])
    }
}
