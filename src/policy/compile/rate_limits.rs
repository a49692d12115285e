//! Rate limits: the rules of a route.

use std::{
    collections::HashMap,
    num::{NonZeroU32, NonZeroU64},
    sync::Arc,
};

use super::{At, Compiler, Scope, sections};
use crate::{
    policy::{
        document::{ClientSelector, LimitUnit, ModeName, RateLimitRule, SelectorType},
        snapshot::{QuotaSpec, RateLimitSpec, RateRuleSpec, SelectorSpec},
    },
    resilience::Mode,
};

impl<'a> Compiler<'a> {
    /// The nearest section's rules; those with a key first, so that a noisy client is stopped by its own bucket and does not
    /// drain one that all share.
    pub(super) fn rate_limits(&mut self, scopes: &[&Scope<'_, 'a>]) -> RateLimitSpec {
        let Some(found) = sections::nearest(scopes, "rateLimit", |sections| sections.rate_limit.as_ref()) else {
            return RateLimitSpec::default();
        };
        let section = found.section;
        let max_keys = self.at_least_one(&found.at, "maxKeys", section.max_keys, 10_000).get();
        let mut names = HashMap::new();
        let mut rules = Vec::new();
        for (index, rule) in section.local.iter().flat_map(|local| &local.rules).enumerate() {
            let at = found.at.key("local").key("rules").index(index);
            self.check_name(&at.key("name"), "rule", &rule.name, &mut names);
            let mode = sections::mode(rule.mode.unwrap_or(section.mode));
            let made = self.rule(&at, rule, mode, max_keys);
            if mode != Mode::Off && section.mode != ModeName::Off {
                rules.extend(made);
            }
        }
        rules.sort_by_key(|rule: &RateRuleSpec| !rule.is_keyed());
        RateLimitSpec { rules, headers: section.rate_limit_headers.unwrap_or_default(), origin: found.origin }
    }

    fn rule(&mut self, at: &At<'a>, rule: &RateLimitRule, mode: Mode, max_keys: u32) -> Option<RateRuleSpec> {
        let limit_at = at.key("limit");
        let requests = self.at_least_one(&limit_at, "requests", Some(rule.limit.requests), 100);
        let burst = self.at_least_one(&limit_at, "burst", rule.limit.burst, requests.get());
        let cost = match &rule.cost {
            Some(cost) => self.at_least_one(&at.key("cost").key("request"), "number", Some(cost.request.number), 1),
            None => NonZeroU32::MIN,
        };
        if cost > burst {
            let hint = format!("the bucket holds {burst}; raise `limit.burst`, or lower the cost");
            self.error(&at.key("cost").key("request").key("number"), format!("a request that costs {cost} could never pass")).hint(hint);
        }
        let selectors: Vec<Option<SelectorSpec>> =
            rule.client_selectors.iter().enumerate().map(|(index, selector)| self.selector(&at.key("clientSelectors").index(index), selector)).collect();
        if u128::from(burst.get()) * u128::from(unit_nanos(rule.limit.unit)) / u128::from(requests.get()) > u128::from(u64::MAX / 2) {
            let hint = "an empty bucket would take centuries to fill; lower `burst`, or raise `requests`";
            self.error(&limit_at.key("burst"), "this bucket is too slow to be counted").hint(hint);
        }
        let unit_seconds = NonZeroU64::new(unit_nanos(rule.limit.unit) / 1_000_000_000)?;
        Some(RateRuleSpec {
            name: Arc::from(rule.name.as_str()),
            mode,
            selectors: selectors.into_iter().collect::<Option<_>>()?,
            quota: QuotaSpec { requests, unit_seconds, burst },
            cost,
            max_keys: usize::try_from(max_keys).unwrap_or(usize::MAX),
        })
    }

    fn selector(&mut self, at: &At<'a>, selector: &ClientSelector) -> Option<SelectorSpec> {
        let mut headers = Vec::new();
        for (index, header) in selector.headers.iter().enumerate() {
            let at = at.key("headers").index(index);
            let Ok(name) = header.name.to_ascii_lowercase().parse::<http::HeaderName>() else {
                self.error(&at.key("name"), format!("`{}` is not the name of a header", header.name)).hint("header names are letters, digits and `-`");
                continue;
            };
            match (header.kind, &header.value) {
                (SelectorType::Distinct, None) => headers.push((name, None)),
                (SelectorType::Exact, Some(value)) => headers.push((name, Some(value.clone()))),
                (SelectorType::Distinct, Some(_)) => self.error(&at.key("value"), "Distinct takes every value").hint("take `value` out, or write `type: Exact`"),
                (SelectorType::Exact, None) => self.error(&at, "Exact needs a value").hint("add `value`, or write `type: Distinct` for one bucket per value"),
            }
        }
        let identity = match selector.identity.as_ref().map(|identity| (identity.kind, &identity.value)) {
            None => None,
            Some((SelectorType::Distinct, None)) => Some(None),
            Some((SelectorType::Exact, Some(value))) => Some(Some(Arc::from(value.as_str()))),
            Some((SelectorType::Distinct, Some(_))) => {
                self.error(&at.key("identity").key("value"), "Distinct takes every value").hint("take `value` out, or write `type: Exact`");
                None
            }
            Some((SelectorType::Exact, None)) => {
                self.error(&at.key("identity"), "Exact needs a value").hint("add `value`, or write `type: Distinct` for one bucket per identity");
                None
            }
        };
        if selector.headers.is_empty() && selector.source_cidr.is_none() && selector.identity.is_none() {
            self.error(at, "a selector that selects nothing").hint("add `headers`, `sourceCIDR` or `identity`, or take the selector out to mean all requests");
        }
        let source = match &selector.source_cidr {
            None => None,
            Some(source) => match source.value.parse() {
                Ok(range) => Some((range, source.kind == SelectorType::Distinct)),
                Err(_) => {
                    self.error(&at.key("sourceCIDR").key("value"), format!("`{}` is not a range of addresses", source.value)).hint("write it like `10.0.0.0/8` or `0.0.0.0/0`");
                    return None;
                }
            },
        };
        Some(SelectorSpec { headers, source, identity })
    }
}

fn unit_nanos(unit: LimitUnit) -> u64 {
    let seconds = match unit {
        LimitUnit::Second => 1,
        LimitUnit::Minute => 60,
        LimitUnit::Hour => 3_600,
        LimitUnit::Day => 86_400,
    };
    seconds * 1_000_000_000
}
