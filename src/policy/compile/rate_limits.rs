//! Compiles the rate limit rules of a route.
//!
//! It decides the order of evaluation, and rejects quotas that cannot be counted with
//! sufficient precision. It does not know the number of instances or the tokens in a bucket.

mod selectors;

use std::{
    collections::HashMap,
    num::{NonZeroU32, NonZeroU64},
    sync::Arc,
    time::Duration,
};

use crate::{
    policy::{
        compile::{
            compiler::{Compiler, FieldLocation, SectionScope},
            sections,
        },
        document::{
            LimitUnit, ModeSetting, RateLimitCost, RateLimitHeaders, RateLimitRule,
            RateWarmUpSection,
        },
        snapshot::{QuotaSpec, RateLimitRuleSpec, RateLimitSpec, RateWarmUpSpec},
        units::PolicyDuration,
    },
    resilience::Mode,
};

/// Maximum delay of a request that waits for tokens.
///
/// The delay paces requests and is not a queue. A client that would wait longer can better try
/// another instance. The default of Sentinel is also 500 ms.
const MAX_TOKEN_WAIT: Duration = Duration::from_millis(500);

impl<'a> Compiler<'a> {
    /// Compiles the rules of the nearest section.
    ///
    /// Local rules are evaluated before global ones, and keyed rules first among each. A client
    /// that exceeds its rate is rejected by its own bucket and does not consume the tokens of a
    /// shared one.
    pub(super) fn compile_rate_limits(
        &mut self,
        scopes: &[&SectionScope<'_, 'a>],
    ) -> RateLimitSpec {
        let Some(found) = sections::find_nearest_section(scopes, "rateLimit", |sections| {
            sections.rate_limit.as_ref()
        }) else {
            return RateLimitSpec::default();
        };
        let section = found.section;
        let headers = section.rate_limit_headers.unwrap_or_default();
        let max_keys = self
            .require_at_least_one(&found.at, "maxKeys", section.max_keys, 10_000)
            .get();
        let mut names = HashMap::new();
        let mut rules = Vec::new();
        let local = section
            .local
            .iter()
            .flat_map(|local| local.rules.iter().enumerate().map(|rule| ("local", rule)));
        let global = section
            .global
            .iter()
            .flat_map(|global| global.rules.iter().enumerate().map(|rule| ("global", rule)));
        if global.clone().next().is_some()
            && !self.is_partial
            && !self
                .documents
                .iter()
                .any(|located| located.document.spec.global_rate_limit.is_some())
        {
            let hint = "add `globalRateLimit: {backend: {type: Redis, redis: {url: \
                        \"redis://HOST:6379\"}}}`, or `{type: Replicas, replicas: {backend: \
                        NAME}}`";
            self.error(
                &found.at.key("global"),
                "nobody keeps limits for all instances",
            )
            .hint(hint);
        }
        for (scope, (index, rule)) in local.chain(global) {
            let at = found.at.key(scope).key("rules").index(index);
            self.check_name(&at.key("name"), "rule", &rule.name, &mut names);
            let mode = sections::compile_mode(rule.mode.unwrap_or(section.mode));
            let compiled = self
                .compile_rate_limit_rule(&at, rule, mode, max_keys, headers)
                .map(|compiled| RateLimitRuleSpec {
                    is_global: scope == "global",
                    ..compiled
                });
            if rule.warm_up.is_some() && scope == "global" {
                self.error(
                    &at.key("warmUp"),
                    "a limit of all instances does not warm up",
                )
                .hint("warm up a `local` rule beside it");
            }
            if mode != Mode::Off && section.mode != ModeSetting::Off {
                rules.extend(compiled);
            }
        }
        rules.sort_by_key(|rule: &RateLimitRuleSpec| (rule.is_global, !rule.is_keyed()));
        RateLimitSpec {
            rules,
            headers,
            origin: found.origin,
        }
    }

    fn compile_rate_limit_rule(
        &mut self,
        at: &FieldLocation<'a>,
        rule: &RateLimitRule,
        mode: Mode,
        max_keys: u32,
        headers: RateLimitHeaders,
    ) -> Option<RateLimitRuleSpec> {
        let quota = self.compile_quota(&at.key("limit"), rule)?;
        let (cost, response_cost) = self.compile_cost(
            &at.key("cost"),
            &rule.cost.clone().unwrap_or_default(),
            quota.burst,
        );
        let selectors: Vec<_> = rule
            .client_selectors
            .iter()
            .enumerate()
            .map(|(index, selector)| {
                self.compile_selector(&at.key("clientSelectors").index(index), selector)
            })
            .collect();
        let max_wait = rule
            .queue
            .as_ref()
            .map_or(Duration::ZERO, |queue| queue.max_wait.0);
        if rule.queue.is_some() && max_wait.is_zero() {
            self.error(&at.key("queue").key("maxWait"), "nobody could wait")
                .hint("write a time up to 500ms, or take `queue` out");
        }
        if max_wait > MAX_TOKEN_WAIT {
            let message = format!(
                "a request waits at most {} for its tokens",
                PolicyDuration(MAX_TOKEN_WAIT)
            );
            self.error(&at.key("queue").key("maxWait"), message)
                .hint("lower it; for longer waits there is `connectionLimits.pendingTimeout`");
        }
        let compiled = RateLimitRuleSpec {
            name: Arc::from(rule.name.as_str()),
            mode,
            is_global: false,
            selectors: selectors.into_iter().collect::<Option<_>>()?,
            quota,
            cost,
            response_cost_header: response_cost,
            max_wait,
            warm_up: rule
                .warm_up
                .as_ref()
                .map(|warm_up| self.compile_rate_warm_up(&at.key("warmUp"), warm_up)),
            policy_header: format_policy_header(&rule.name, quota, headers),
            max_keys: usize::try_from(max_keys).unwrap_or(usize::MAX),
        };
        if compiled.warm_up.is_some() && compiled.is_keyed() {
            self.error(
                &at.key("warmUp"),
                "a rule with a bucket for each value cannot warm up",
            )
            .hint("warm up a rule of the whole; each client's own bucket needs none");
        }
        Some(compiled)
    }

    fn compile_quota(&mut self, at: &FieldLocation<'a>, rule: &RateLimitRule) -> Option<QuotaSpec> {
        let requests = self.require_at_least_one(at, "requests", Some(rule.limit.requests), 100);
        let burst = self.require_at_least_one(at, "burst", rule.limit.burst, requests.get());
        let unit = unit_seconds(rule.limit.unit);
        // The bucket counts nanoseconds in 64 bits. Debts and reservations need twice the
        // refill time, and the remaining factor is a margin.
        if u128::from(burst.get()) * u128::from(unit) * 1_000_000_000 / u128::from(requests.get())
            > u128::from(u64::MAX / 8)
        {
            let hint =
                "an empty bucket would take centuries to fill; lower `burst`, or raise `requests`";
            self.error(&at.key("burst"), "this bucket is too slow to be counted")
                .hint(hint);
        }
        // The emission interval is a whole number of nanoseconds, and rounding it changes the
        // rate. More than 1 % is rejected. Below 1 ns, the quotient is infinite and is rejected
        // too.
        let interval = Duration::from_secs(unit).as_secs_f64() * 1e9 / f64::from(requests.get());
        if interval / interval.floor() > 1.01 {
            self.error(
                &at.key("requests"),
                "so many are not counted within a hundredth",
            )
            .hint("up to ten million each second are; count in larger units, like kilobytes");
        }
        Some(QuotaSpec {
            requests,
            unit_seconds: NonZeroU64::new(unit)?,
            burst,
        })
    }

    fn compile_cost(
        &mut self,
        at: &FieldLocation<'a>,
        cost: &RateLimitCost,
        burst: NonZeroU32,
    ) -> (u32, Option<http::HeaderName>) {
        let response = cost.response.as_ref().and_then(|response| {
            self.parse_header_name(&at.key("response").key("header"), &response.header)
        });
        let number = cost.request.as_ref().map_or(1, |request| request.number);
        let at = at.key("request").key("number");
        if number == 0 && response.is_none() {
            self.error(&at, "a request that costs nothing is not limited")
                .hint("1 is the default; 0 is for rules with a `response` cost");
        }
        if number > burst.get() {
            let hint = format!("the bucket holds {burst}; raise `limit.burst`, or lower the cost");
            self.error(
                &at,
                format!("a request that costs {number} could never pass"),
            )
            .hint(hint);
        }
        (number, response)
    }

    fn compile_rate_warm_up(
        &mut self,
        at: &FieldLocation<'a>,
        warm_up: &RateWarmUpSection,
    ) -> RateWarmUpSpec {
        let window = warm_up
            .window
            .map_or(Duration::from_secs(10), |span| span.0);
        let cold_factor = warm_up.cold_factor.unwrap_or(3);
        if window < Duration::from_secs(1) {
            self.error(&at.key("window"), "a rate warms up for at least 1s")
                .hint("10s is the default");
        }
        if cold_factor < 2 {
            self.error(
                &at.key("coldFactor"),
                "a cold rate is at most half of the warm one",
            )
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
