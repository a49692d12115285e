//! The retry budget: the retries to a backend, relative to its requests.

use std::{sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    policy::{
        sections::{
            description::{Description, describe_state},
            origin::SectionOrigin,
            section::{FoundSection, Section, SectionContext},
        },
        units::{Percent, PolicyDuration, duration_or},
    },
    resilience::retry_budget::RetryBudgetConfig,
};

/// Budget that limits the retries to a backend: a share of its requests, and a minimum rate. A
/// retry is made if either allows it. The defaults also apply without this section.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RetryConstraint {
    /// Share of the requests that may be retried. Default 20 percent of the requests in 10s.
    pub budget: Option<RetryBudgetSection>,
    /// Retries that are always allowed, for backends with few requests. Default 10 per 1s.
    pub min_retry_rate: Option<RetryRate>,
}

/// Share of the requests in an interval that may be retried.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RetryBudgetSection {
    /// Retries in percent of the requests in the interval. Default 20.
    pub percent: Option<Percent>,
    /// Length of the interval, above 0s. Default 10s.
    pub interval: Option<PolicyDuration>,
}

/// Number of retries that are always allowed in an interval.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RetryRate {
    /// Number of retries per interval. Default 10.
    pub count: Option<u32>,
    /// Length of the interval, above 0s. Default 1s.
    pub interval: Option<PolicyDuration>,
}

/// Retry budget, which limits retries relative to the requests to a backend.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryBudgetSpec {
    /// Share of retries, and the minimum number that is always permitted.
    pub config: RetryBudgetConfig,
    /// Name of the state; sections with the same name share one budget.
    pub name: Arc<str>,
    /// Source of the section.
    pub origin: SectionOrigin,
}

impl Section for RetryConstraint {
    const KEY: &'static str = "retryConstraint";
    type Spec = RetryBudgetSpec;

    fn compile(
        found: Option<FoundSection<'_, Self>>,
        context: &mut SectionContext<'_>,
    ) -> RetryBudgetSpec {
        let section = found
            .as_ref()
            .map(|found| found.section.clone())
            .unwrap_or_default();
        let (budget, rate) = (
            section.budget.unwrap_or_default(),
            section.min_retry_rate.unwrap_or_default(),
        );
        let defaults = RetryBudgetConfig::default();
        let mut interval = |keys: [&str; 2], span: Option<PolicyDuration>, default: Duration| {
            let interval = duration_or(span, default);
            if let Some(found) = found.as_ref().filter(|_| interval.is_zero()) {
                context
                    .report
                    .error(
                        &found.at.key(keys[0]).key(keys[1]),
                        "an interval must be longer than 0s",
                    )
                    .hint(format!("{} is the default", PolicyDuration(default)));
            }
            interval
        };
        let config = RetryBudgetConfig {
            share: budget.percent.map_or(defaults.share, Percent::ratio),
            interval: interval(["budget", "interval"], budget.interval, defaults.interval),
            floor: rate.count.unwrap_or(defaults.floor),
            floor_interval: interval(
                ["minRetryRate", "interval"],
                rate.interval,
                defaults.floor_interval,
            ),
        };
        let origin = found.map(|found| found.origin).unwrap_or_default();
        RetryBudgetSpec {
            config,
            name: origin.state_name(context.backend),
            origin,
        }
    }

    fn describe(spec: &RetryBudgetSpec) -> Vec<Description> {
        let config = &spec.config;
        let description = Description::default()
            .with("budget.percent", config.share.percent())
            .with("budget.interval", PolicyDuration(config.interval))
            .with("minRetryRate.count", config.floor)
            .with(
                "minRetryRate.interval",
                PolicyDuration(config.floor_interval),
            )
            .with("state", &spec.name)
            .with_origin(&spec.origin);
        vec![description]
    }

    fn describe_state_change(old: &RetryBudgetSpec, new: &RetryBudgetSpec) -> String {
        let is_retained = old.config == new.config;
        describe_state(
            &old.name,
            &new.name,
            is_retained,
            ["its counts are retained", "its counts are reset"],
        )
    }
}
