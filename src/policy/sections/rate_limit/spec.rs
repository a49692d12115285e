//! Compiled rate limits of a route.
//!
//! The types hold configuration only. They do not know the tokens that are left in a bucket.

use std::{
    fmt,
    num::{NonZeroU32, NonZeroU64},
    sync::Arc,
    time::Duration,
};

use crate::{
    policy::{
        matching::PathMatchSpec,
        sections::{origin::SectionOrigin, rate_limit::document::RateLimitHeaders},
        units::PolicyDuration,
    },
    resilience::Mode,
};

/// Rate limits of a route, evaluated in order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RateLimitSpec {
    /// Rules in order of evaluation: local rules before global ones, and keyed rules first
    /// among each.
    pub rules: Vec<RateLimitRuleSpec>,
    /// Rate limit headers that responses carry.
    pub headers: RateLimitHeaders,
    /// Source of the section.
    pub origin: SectionOrigin,
}

impl RateLimitSpec {
    /// Returns the rule with a name.
    pub(in crate::policy) fn find_rule(&self, name: &str) -> Option<&RateLimitRuleSpec> {
        self.rules.iter().find(|rule| *rule.name == *name)
    }
}

/// Configuration of one rate limit rule.
#[derive(Debug, Clone, PartialEq)]
pub struct RateLimitRuleSpec {
    /// Name of the rule, which identifies its buckets across reloads.
    pub name: Arc<str>,
    /// Whether the rule is enforced, only logged, or off.
    pub mode: Mode,
    /// Whether all instances share the quota.
    pub is_global: bool,
    /// Selectors of the requests; one match suffices, and no selectors match every request.
    pub selectors: Vec<SelectorSpec>,
    /// Rate and burst of each bucket.
    pub quota: QuotaSpec,
    /// Tokens that a request takes from the bucket.
    pub cost: u32,
    /// Response header whose value is charged to the bucket in addition to `cost`.
    pub response_cost_header: Option<http::HeaderName>,
    /// Maximum time that a request is delayed until its tokens are available.
    pub max_wait: Duration,
    /// Gradual increase of the rate, if configured.
    pub warm_up: Option<RateWarmUpSpec>,
    /// Value of the header that describes the quota, in the header style of the section.
    pub policy_header: Option<http::HeaderValue>,
    /// Maximum number of keys with a bucket of their own; further keys share an overflow bucket.
    pub max_keys: usize,
}

/// Quota of a token bucket: `requests` tokens are refilled per unit, and at most `burst` are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaSpec {
    /// Tokens that are refilled per unit.
    pub requests: NonZeroU32,
    /// Length of the unit, in seconds.
    pub unit_seconds: NonZeroU64,
    /// Capacity of the bucket, in tokens.
    pub burst: NonZeroU32,
}

impl QuotaSpec {
    /// Returns the time in which one token is refilled, at least one nanosecond.
    #[must_use]
    pub fn emission_interval(self) -> Duration {
        (Duration::from_secs(self.unit_seconds.get()) / self.requests.get())
            .max(Duration::from_nanos(1))
    }

    /// Returns the time in which an empty bucket is refilled to its capacity.
    #[must_use]
    pub fn refill_duration(self) -> Duration {
        self.emission_interval().saturating_mul(self.burst.get())
    }
}

/// Gradual increase of a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateWarmUpSpec {
    /// Duration of the increase.
    pub window: Duration,
    /// Divisor of the rate at the start of the increase.
    pub cold_factor: u32,
}

/// Selector of requests; all given conditions must match.
#[derive(Debug, Clone, PartialEq)]
pub struct SelectorSpec {
    /// Headers with their required value. `None` matches any value, with one bucket per value.
    pub headers: Vec<(http::HeaderName, Option<String>)>,
    /// Condition on the path, if any.
    pub path: Option<PathMatchSpec>,
    /// Permitted methods; an empty list permits every method.
    pub methods: Vec<http::Method>,
    /// Range of client addresses, and whether each address has its own bucket.
    pub source_cidr: Option<(ipnet::IpNet, bool)>,
    /// Identity in the client's certificate. The inner `None` matches any, with one bucket per
    /// identity.
    pub identity: Option<Option<Arc<str>>>,
}

impl fmt::Display for RateLimitRuleSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let QuotaSpec {
            requests,
            unit_seconds,
            burst,
        } = self.quota;
        write!(
            f,
            "{requests} per {}, burst {burst}, cost {}",
            PolicyDuration(Duration::from_secs(unit_seconds.get())),
            self.cost
        )?;
        if let Some(header) = &self.response_cost_header {
            write!(f, " and the number in the response header {header}")?;
        }
        if !self.max_wait.is_zero() {
            write!(f, ", delays up to {}", PolicyDuration(self.max_wait))?;
        }
        if let Some(RateWarmUpSpec {
            window,
            cold_factor,
        }) = self.warm_up
        {
            write!(
                f,
                ", warms up from 1/{cold_factor} of the rate in {}",
                PolicyDuration(window)
            )?;
        }
        if self.is_keyed() {
            write!(f, ", one bucket per key, {} keys", self.max_keys)?;
        }
        if self.is_global {
            write!(f, ", shared by all instances")?;
        }
        write!(f, ", {}", self.mode.name())
    }
}

impl RateLimitRuleSpec {
    /// Returns whether the requests are divided into buckets by a key.
    #[must_use]
    pub fn is_keyed(&self) -> bool {
        let is_distinct = |selector: &SelectorSpec| {
            let has_distinct_header = selector.headers.iter().any(|(_, value)| value.is_none());
            has_distinct_header
                || selector.source_cidr.is_some_and(|(_, distinct)| distinct)
                || selector.identity == Some(None)
        };
        self.selectors.iter().any(is_distinct)
    }

    /// Returns whether the rule is a plain token bucket.
    ///
    /// A plain bucket admits or rejects without delay, at a constant rate, and every request
    /// costs at least one token.
    #[must_use]
    pub fn is_plain_token_bucket(&self) -> bool {
        self.max_wait.is_zero() && self.warm_up.is_none() && self.cost > 0
    }
}
