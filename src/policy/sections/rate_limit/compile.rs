//! Compiles the rate limit rules of a section.
//!
//! It decides the order of evaluation, and rejects quotas that cannot be counted with
//! sufficient precision. It does not know the number of instances or the tokens in a bucket.

use std::{
    collections::HashMap,
    num::{NonZeroU32, NonZeroU64},
    sync::Arc,
    time::Duration,
};

use crate::{
    policy::{
        mode::ModeSetting,
        report::{DiagnosticReport, FieldLocation},
        sections::{
            rate_limit::{
                document::{
                    LimitUnit, RateLimitCost, RateLimitHeaders, RateLimitRule, RateLimitSection,
                    RateWarmUpSection,
                },
                spec::{QuotaSpec, RateLimitRuleSpec, RateLimitSpec, RateWarmUpSpec},
            },
            section::{FoundSection, SectionContext},
        },
        units::{PolicyDuration, duration_or},
    },
    resilience::Mode,
};

/// Maximum delay of a request that waits for tokens.
///
/// The delay paces requests and is not a queue. A client that would wait longer can better try
/// another instance. The default of Sentinel is also 500 ms.
const MAX_TOKEN_WAIT: Duration = Duration::from_millis(500);

/// What a rule inherits from its section.
struct RuleDefaults {
    mode: Mode,
    headers: RateLimitHeaders,
    max_keys: u32,
    /// Whether all instances share the quota.
    is_global: bool,
}

/// Compiles the rules of a section.
///
/// Local rules are evaluated before global ones, and keyed rules first among each. A client that
/// exceeds its rate is rejected by its own bucket and does not consume the tokens of a shared
/// one.
pub(super) fn compile(
    found: FoundSection<'_, RateLimitSection>,
    context: &mut SectionContext<'_>,
) -> RateLimitSpec {
    let section = found.section;
    let headers = section.rate_limit_headers.unwrap_or_default();
    let max_keys = context
        .report
        .require_at_least_one(&found.at, "maxKeys", section.max_keys, 10_000)
        .get();
    let local = section.local.as_ref().map_or(&[][..], |local| &local.rules);
    let global = section
        .global
        .as_ref()
        .map_or(&[][..], |global| &global.rules);
    if !global.is_empty() && !context.report.is_partial && !context.facts.has_global_rate_limit {
        let hint = "add `globalRateLimit: {backend: {type: Redis, redis: {url: \
                    \"redis://HOST:6379\"}}}`, or `{type: Replicas, replicas: {backend: NAME}}`";
        context
            .report
            .error(
                &found.at.key("global"),
                "`global` rules need `globalRateLimit`",
            )
            .hint(hint);
    }
    let mut names = HashMap::new();
    let mut rules = Vec::new();
    for (key, section_rules) in [("local", local), ("global", global)] {
        for (index, rule) in section_rules.iter().enumerate() {
            let at = found.at.key(key).key("rules").index(index);
            context
                .report
                .check_name(&at.key("name"), "rule", &rule.name, &mut names);
            let defaults = RuleDefaults {
                mode: rule.mode.unwrap_or(section.mode).mode(),
                headers,
                max_keys,
                is_global: key == "global",
            };
            let compiled = rule.compile(&at, &defaults, context.report);
            if defaults.mode != Mode::Off && section.mode != ModeSetting::Off {
                rules.extend(compiled);
            }
        }
    }
    rules.sort_by_key(|rule: &RateLimitRuleSpec| (rule.is_global, !rule.is_keyed()));
    RateLimitSpec {
        rules,
        headers,
        origin: found.origin,
    }
}

impl RateLimitRule {
    fn compile(
        &self,
        at: &FieldLocation<'_>,
        defaults: &RuleDefaults,
        report: &mut DiagnosticReport,
    ) -> Option<RateLimitRuleSpec> {
        if self.warm_up.is_some() && defaults.is_global {
            report
                .error(&at.key("warmUp"), "a limit of all instances cannot warm up")
                .hint("warm up a `local` rule in addition");
        }
        let quota = self.compile_quota(&at.key("limit"), report)?;
        let (cost, response_cost_header) = self.compile_cost(&at.key("cost"), quota.burst, report);
        let selectors: Vec<_> = self
            .client_selectors
            .iter()
            .enumerate()
            .map(|(index, selector)| {
                selector.compile(&at.key("clientSelectors").index(index), report)
            })
            .collect();
        let compiled = RateLimitRuleSpec {
            name: Arc::from(self.name.as_str()),
            mode: defaults.mode,
            is_global: defaults.is_global,
            max_wait: self.compile_max_wait(&at.key("queue").key("maxWait"), report),
            selectors: selectors.into_iter().collect::<Option<_>>()?,
            quota,
            cost,
            response_cost_header,
            warm_up: self
                .warm_up
                .as_ref()
                .map(|warm_up| warm_up.compile(&at.key("warmUp"), report)),
            policy_header: format_policy_header(&self.name, quota, defaults.headers),
            max_keys: usize::try_from(defaults.max_keys).unwrap_or(usize::MAX),
        };
        if compiled.warm_up.is_some() && compiled.is_keyed() {
            report
                .error(
                    &at.key("warmUp"),
                    "a rule with a bucket for each value cannot warm up",
                )
                .hint("warm up a rule with a single bucket; the bucket of a client needs none");
        }
        Some(compiled)
    }

    /// Returns the maximum wait of a request for its tokens; without a queue it is zero.
    fn compile_max_wait(&self, at: &FieldLocation<'_>, report: &mut DiagnosticReport) -> Duration {
        let Some(queue) = &self.queue else {
            return Duration::ZERO;
        };
        let max_wait = queue.max_wait.0;
        if max_wait.is_zero() {
            report
                .error(at, "with 0s, no request can wait")
                .hint("write a time up to 500ms, or remove `queue`");
        }
        if max_wait > MAX_TOKEN_WAIT {
            let message = format!(
                "`maxWait` must be at most {}",
                PolicyDuration(MAX_TOKEN_WAIT)
            );
            report
                .error(at, message)
                .hint("lower it; for longer waits there is `connectionLimits.pendingTimeout`");
        }
        max_wait
    }

    fn compile_quota(
        &self,
        at: &FieldLocation<'_>,
        report: &mut DiagnosticReport,
    ) -> Option<QuotaSpec> {
        let limit = &self.limit;
        let requests = report.require_at_least_one(at, "requests", Some(limit.requests), 100);
        let burst = report.require_at_least_one(at, "burst", limit.burst, requests.get());
        let unit = unit_seconds(limit.unit);
        // The bucket counts nanoseconds in 64 bits. Debts and reservations need twice the
        // refill time, and the remaining factor is a margin.
        if u128::from(burst.get()) * u128::from(unit) * 1_000_000_000 / u128::from(requests.get())
            > u128::from(u64::MAX / 8)
        {
            let hint = "an empty bucket would take centuries to fill; lower `burst`, or raise \
                        `requests`";
            report
                .error(&at.key("burst"), "this bucket is too slow to be counted")
                .hint(hint);
        }
        // The emission interval is a whole number of nanoseconds, and rounding it changes the
        // rate. More than 1 % is rejected. Below 1 ns, the quotient is infinite and is rejected
        // too.
        let interval = Duration::from_secs(unit).as_secs_f64() * 1e9 / f64::from(requests.get());
        if interval / interval.floor() > 1.01 {
            report
                .error(
                    &at.key("requests"),
                    "so many requests cannot be counted with an error of at most 1 %",
                )
                .hint("write at most ten million per second, or count larger units like kilobytes");
        }
        Some(QuotaSpec {
            requests,
            unit_seconds: NonZeroU64::new(unit)?,
            burst,
        })
    }

    /// Returns the tokens that a request takes, and the response header with further tokens.
    fn compile_cost(
        &self,
        at: &FieldLocation<'_>,
        burst: NonZeroU32,
        report: &mut DiagnosticReport,
    ) -> (u32, Option<http::HeaderName>) {
        let none = RateLimitCost::default();
        let cost = self.cost.as_ref().unwrap_or(&none);
        let response = cost.response.as_ref().and_then(|response| {
            report.parse_header_name(&at.key("response").key("header"), &response.header)
        });
        let number = cost.request.as_ref().map_or(1, |request| request.number);
        let at = at.key("request").key("number");
        if number == 0 && response.is_none() {
            report
                .error(&at, "a request that costs nothing is not limited")
                .hint("1 is the default; 0 is for rules with a `response` cost");
        }
        if number > burst.get() {
            let hint = format!("the bucket holds {burst}; raise `limit.burst`, or lower the cost");
            report
                .error(
                    &at,
                    format!("a request that costs {number} could never be admitted"),
                )
                .hint(hint);
        }
        (number, response)
    }
}

impl RateWarmUpSection {
    fn compile(&self, at: &FieldLocation<'_>, report: &mut DiagnosticReport) -> RateWarmUpSpec {
        let window = duration_or(self.window, Duration::from_secs(10));
        let cold_factor = self.cold_factor.unwrap_or(3);
        if window < Duration::from_secs(1) {
            report
                .error(&at.key("window"), "the window must be at least 1s")
                .hint("10s is the default");
        }
        if cold_factor < 2 {
            report
                .error(&at.key("coldFactor"), "`coldFactor` must be at least 2")
                .hint("3 is the default");
        }
        RateWarmUpSpec {
            window,
            cold_factor: cold_factor.max(2),
        }
    }
}

fn format_policy_header(
    rule: &str,
    quota: QuotaSpec,
    headers: RateLimitHeaders,
) -> Option<http::HeaderValue> {
    let QuotaSpec {
        requests,
        unit_seconds,
        ..
    } = quota;
    let text = match headers {
        RateLimitHeaders::Off => return None,
        RateLimitHeaders::Draft10 => format!(r#""{rule}";q={requests};w={unit_seconds}"#),
        RateLimitHeaders::DraftVersion03 => {
            format!(r#"{requests}, {requests};w={unit_seconds};name="{rule}""#)
        }
    };
    text.try_into().ok()
}

fn unit_seconds(unit: LimitUnit) -> u64 {
    match unit {
        LimitUnit::Second => 1,
        LimitUnit::Minute => 60,
        LimitUnit::Hour => 3_600,
        LimitUnit::Day => 86_400,
    }
}
