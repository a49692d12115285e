//! How many requests may come.

use std::{
    fmt,
    num::{NonZeroU32, NonZeroU64},
    sync::Arc,
    time::Duration,
};

use crate::{
    policy::{
        document::RateLimitHeaders, matching::PathMatchSpec, snapshot::SectionOrigin,
        units::PolicyDuration,
    },
    resilience::Mode,
};

/// The rate limits of a route.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RateLimitSpec {
    /// The rules; those of this instance first, and of these those with a key.
    pub rules: Vec<RateLimitRuleSpec>,
    /// Headers about them.
    pub headers: RateLimitHeaders,
    /// Where the section is from.
    pub origin: SectionOrigin,
}

/// One rule.
#[derive(Debug, Clone, PartialEq)]
pub struct RateLimitRuleSpec {
    /// Its name.
    pub name: Arc<str>,
    /// Whether it acts.
    pub mode: Mode,
    /// Whether all instances share its buckets.
    pub is_global: bool,
    /// Which requests it is about; any suffices, none means all.
    pub selectors: Vec<SelectorSpec>,
    /// The bucket.
    pub quota: QuotaSpec,
    /// What a request takes.
    pub cost: u32,
    /// The header of an answer that says what else it was worth.
    pub response_cost_header: Option<http::HeaderName>,
    /// How long a request may wait for its tokens.
    pub max_wait: Duration,
    /// How the rate begins.
    pub warm_up: Option<RateWarmUpSpec>,
    /// What its headers say of the bucket, in the style of its section.
    pub policy_header: Option<http::HeaderValue>,
    /// Keys that are told apart.
    pub max_keys: usize,
}

/// A bucket: `requests` come back in each `unit`, and it holds `burst`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaSpec {
    /// Tokens per unit.
    pub requests: NonZeroU32,
    /// The unit in seconds.
    pub unit_seconds: NonZeroU64,
    /// What it holds.
    pub burst: NonZeroU32,
}

impl QuotaSpec {
    /// The time in which one token comes back.
    #[must_use]
    pub fn emission_interval(self) -> Duration {
        (Duration::from_secs(self.unit_seconds.get()) / self.requests.get())
            .max(Duration::from_nanos(1))
    }

    /// The time in which an empty bucket is full again.
    #[must_use]
    pub fn refill_duration(self) -> Duration {
        self.emission_interval().saturating_mul(self.burst.get())
    }
}

/// A rate that rises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateWarmUpSpec {
    /// How long it takes.
    pub window: Duration,
    /// At first the rate is divided by this.
    pub cold_factor: u32,
}

/// A selection of requests.
#[derive(Debug, Clone, PartialEq)]
pub struct SelectorSpec {
    /// Headers and the value they must have, or `None` for one bucket per value.
    pub headers: Vec<(http::HeaderName, Option<String>)>,
    /// The path.
    pub path: Option<PathMatchSpec>,
    /// The methods; none means any.
    pub methods: Vec<http::Method>,
    /// The range of client addresses, and whether there is one bucket per address.
    pub source_cidr: Option<(ipnet::IpNet, bool)>,
    /// The identity in the client's certificate, or `None` for one bucket per identity.
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
            write!(f, " and what {header} of the answer says")?;
        }
        if !self.max_wait.is_zero() {
            write!(f, ", waits up to {}", PolicyDuration(self.max_wait))?;
        }
        if let Some(RateWarmUpSpec {
            window,
            cold_factor,
        }) = self.warm_up
        {
            write!(
                f,
                ", from 1/{cold_factor} of it in {}",
                PolicyDuration(window)
            )?;
        }
        if self.is_keyed() {
            write!(f, ", one bucket per key, {} keys", self.max_keys)?;
        }
        if self.is_global {
            write!(f, ", of all instances")?;
        }
        write!(f, ", {:?}", self.mode)
    }
}

impl RateLimitRuleSpec {
    /// Whether requests are told apart by a key.
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

    /// Whether it is a plain bucket: it says yes or no, and its rate is always the same.
    #[must_use]
    pub fn is_plain_token_bucket(&self) -> bool {
        self.max_wait.is_zero() && self.warm_up.is_none() && self.cost > 0
    }
}
