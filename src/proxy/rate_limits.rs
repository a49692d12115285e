//! Rate limits: taking a request's tokens, waiting for them, charging what its answer was worth, and telling how many are left.

use std::{
    fmt::Write as _,
    hash::{BuildHasher, Hasher},
    net::IpAddr,
    time::{Duration, Instant},
};

use ahash::RandomState;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    clock,
    policy::{
        document::RateLimitHeaders,
        snapshot::{RateLimitRuleSpec, SelectorSpec},
    },
    proxy::{
        admission,
        client::Client,
        global_limits,
        rejection::{Rejection, round_up_to_seconds},
        serve::RequestContext,
    },
    resilience::Mode,
    state::{
        active_policy::RouteState,
        policies::rate_limit::{RateLimitGrant, RateLimited},
    },
    telemetry::reason::Reason,
};

const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const X_RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RATELIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// What the rate limits of a route made of a request.
#[derive(Debug, Default)]
pub(super) struct RateLimitOutcome {
    /// The bucket that is next to refuse, or has.
    nearest: Option<NearestLimit>,
    /// Buckets that are charged for the answer.
    pending_charges: Vec<PendingCharge>,
}

#[derive(Debug)]
struct NearestLimit {
    /// Its index in the route.
    rule_index: usize,
    remaining: u32,
    /// In how long there is more.
    reset_after: Duration,
}

#[derive(Debug)]
struct PendingCharge {
    /// The index of its rule in the route.
    rule_index: usize,
    key: ChargeKey,
}

/// Which bucket is charged.
#[derive(Debug)]
enum ChargeKey {
    /// One of this instance.
    Local(Option<u64>),
    /// One of all instances.
    Global(Option<String>),
}

impl RateLimitOutcome {
    /// Notes that a bucket of all instances is charged for the answer.
    pub(super) fn add_global_charge(&mut self, rule: usize, key: Option<String>) {
        self.pending_charges.push(PendingCharge {
            rule_index: rule,
            key: ChargeKey::Global(key),
        });
    }
}

/// Takes the tokens of a request out of every bucket that is about it, and waits until all are there.
pub(super) async fn admit(
    context: &RequestContext<'_>,
    client: &mut Client,
    outcome: &mut RateLimitOutcome,
    now: Instant,
) -> Result<(), Rejection> {
    let mut ready_at = now + acquire_local(context, client, outcome, now)?;
    // Rules of all instances stand at the end.
    if let (Some(remote), true) = (
        &context.active_policy.remote_limits,
        context
            .route
            .spec
            .rate_limits
            .rules
            .last()
            .is_some_and(|rule| rule.is_global),
    ) {
        let wait = Box::pin(global_limits::acquire(
            context, remote, client, outcome, now,
        ))
        .await?;
        ready_at = ready_at.max(clock::now() + wait);
    }
    if ready_at <= now {
        Ok(())
    } else {
        Box::pin(admission::while_client_connected(
            client,
            clock::sleep_until(ready_at),
        ))
        .await
    }
}

fn acquire_local(
    context: &RequestContext<'_>,
    client: &Client,
    outcome: &mut RateLimitOutcome,
    now: Instant,
) -> Result<Duration, Rejection> {
    let route = context.route;
    let mut longest_wait = Duration::ZERO;
    let is_global =
        |rule: &RateLimitRuleSpec| rule.is_global && context.active_policy.remote_limits.is_some();
    for (index, (rule, state)) in route
        .spec
        .rate_limits
        .rules
        .iter()
        .zip(&route.rate_limits)
        .enumerate()
    {
        if is_global(rule) {
            break;
        }
        let Some(key) = select_local_key(rule, context, client) else {
            continue;
        };
        let acquired = state.try_acquire(key, now);
        // In shadow, who would not have come in would not have been worth anything.
        if rule.response_cost_header.is_some() && acquired.is_ok() {
            outcome.pending_charges.push(PendingCharge {
                rule_index: index,
                key: ChargeKey::Local(key),
            });
        }
        longest_wait = longest_wait.max(apply_acquisition(context, outcome, index, acquired)?);
    }
    Ok(longest_wait)
}

/// What it means that a bucket gave tokens, or not: how long to wait for them.
pub(super) fn apply_acquisition(
    context: &RequestContext<'_>,
    outcome: &mut RateLimitOutcome,
    index: usize,
    acquired: Result<RateLimitGrant, RateLimited>,
) -> Result<Duration, Rejection> {
    let rule = &context.route.spec.rate_limits.rules[index];
    match acquired {
        // What only watches makes nobody wait, and tells nobody.
        Ok(_) if rule.mode == Mode::Shadow => Ok(Duration::ZERO),
        Ok(granted) => {
            if outcome
                .nearest
                .as_ref()
                .is_none_or(|nearest| granted.remaining < nearest.remaining)
            {
                outcome.nearest = Some(NearestLimit {
                    rule_index: index,
                    remaining: granted.remaining,
                    reset_after: granted.reset_after,
                });
            }
            Ok(granted.wait)
        }
        Err(_) if rule.mode == Mode::Shadow => {
            context.record_shadow_rejection(Reason::RateLimited, &rule.name);
            Ok(Duration::ZERO)
        }
        Err(limited) => {
            *outcome = RateLimitOutcome {
                nearest: Some(NearestLimit {
                    rule_index: index,
                    remaining: 0,
                    reset_after: limited.retry_after,
                }),
                pending_charges: Vec::new(),
            };
            Err(Rejection::new(Reason::RateLimited, rule.name.clone())
                .with_retry_after(limited.retry_after))
        }
    }
}

/// Charges what an answer was worth.
pub(super) fn charge_response(
    context: &RequestContext<'_>,
    outcome: &mut RateLimitOutcome,
    response_headers: &HeaderMap,
) {
    let route = context.route;
    for PendingCharge {
        rule_index: index,
        key,
    } in outcome.pending_charges.drain(..)
    {
        let rule = &route.spec.rate_limits.rules[index];
        let Some(cost) = rule
            .response_cost_header
            .as_ref()
            .and_then(|header| response_headers.get(header))
        else {
            continue;
        };
        let tokens = cost.to_str().ok().and_then(|cost| cost.parse().ok());
        match (key, tokens) {
            (ChargeKey::Global(key), Some(tokens)) => {
                global_limits::charge_response(context, index, key, tokens)
            }
            (ChargeKey::Global(_), None) => {
                route.rate_limits[index].charge(None, None, clock::now())
            }
            (ChargeKey::Local(key), tokens) => {
                route.rate_limits[index].charge(key, tokens, clock::now())
            }
        }
    }
}

/// The headers that tell of the limit that is nearest.
pub(super) fn limit_headers(
    route: &RouteState,
    outcome: &RateLimitOutcome,
) -> impl Iterator<Item = (HeaderName, HeaderValue)> + use<> {
    let headers = outcome
        .nearest
        .as_ref()
        .map(|nearest| format_headers(route, nearest));
    headers.unwrap_or_default().into_iter().flatten()
}

fn format_headers(
    route: &RouteState,
    nearest: &NearestLimit,
) -> [Option<(HeaderName, HeaderValue)>; 3] {
    let spec = &route.spec.rate_limits;
    let rule = &spec.rules[nearest.rule_index];
    let (left, more) = (nearest.remaining, round_up_to_seconds(nearest.reset_after));
    match spec.headers {
        RateLimitHeaders::Off => [None, None, None],
        RateLimitHeaders::Draft10 => {
            let mut text = String::with_capacity(rule.name.len() + 24);
            // Writing to a String cannot fail.
            _ = write!(text, r#""{}";r={left};t={more}"#, rule.name);
            [
                rule.policy_header
                    .clone()
                    .map(|policy| (RATELIMIT_POLICY, policy)),
                HeaderValue::try_from(text)
                    .ok()
                    .map(|limit| (RATELIMIT, limit)),
                None,
            ]
        }
        RateLimitHeaders::DraftVersion03 => [
            rule.policy_header
                .clone()
                .map(|policy| (X_RATELIMIT_LIMIT, policy)),
            Some((X_RATELIMIT_REMAINING, left.into())),
            Some((X_RATELIMIT_RESET, more.into())),
        ],
    }
}

/// The key of a request for a rule of this instance, `Some(None)` if the rule has none, `None` if the rule is not about it.
#[expect(
    clippy::option_option,
    reason = "selected or not, and then keyed or not, are two questions"
)]
fn select_local_key(
    rule: &RateLimitRuleSpec,
    context: &RequestContext<'_>,
    client: &Client,
) -> Option<Option<u64>> {
    if rule.selectors.is_empty() {
        return Some(None);
    }
    let mut key = RandomState::build_hasher(context.rate_limit_hasher);
    let is_keyed = write_key(rule, context, client, &mut |part| key.write(part))?;
    Some(is_keyed.then(|| key.finish()))
}

/// Writes what tells requests apart under a rule, each part such that no other text makes the same; whether there is anything. `None` if
/// the rule is not about the request.
pub(super) fn write_key(
    rule: &RateLimitRuleSpec,
    context: &RequestContext<'_>,
    client: &Client,
    write: &mut impl FnMut(&[u8]),
) -> Option<bool> {
    if rule.selectors.is_empty() {
        return Some(false);
    }
    let (index, selector) = rule
        .selectors
        .iter()
        .enumerate()
        .find(|(_, selector)| selector_matches(selector, context, client))?;
    let mut is_keyed = false;
    let mut write_part = |bytes: &[u8]| {
        is_keyed = true;
        write(bytes);
        // No header, and no identity, has one in it.
        write(b"\n");
    };
    for (name, _) in selector.headers.iter().filter(|(_, value)| value.is_none()) {
        write_part(client.head().headers.get(name)?.as_bytes());
    }
    if selector
        .source_cidr
        .is_some_and(|(_, is_distinct)| is_distinct)
    {
        match client.client_ip() {
            IpAddr::V4(address) => write_part(&address.to_ipv6_mapped().octets()),
            IpAddr::V6(address) => write_part(&address.octets()),
        }
    }
    if selector.identity == Some(None) {
        write_part(client.identity.certificate_identity.as_deref()?.as_bytes());
    }
    write(&index.to_le_bytes());
    Some(is_keyed)
}

fn selector_matches(
    selector: &SelectorSpec,
    context: &RequestContext<'_>,
    client: &Client,
) -> bool {
    let head = client.head();
    let headers_match = || {
        selector.headers.iter().all(|(name, expected)| {
            let value = head.headers.get(name);
            value.is_some_and(|value| {
                expected
                    .as_ref()
                    .is_none_or(|expected| value.as_bytes() == expected.as_bytes())
            })
        })
    };
    let method_matches = selector.methods.is_empty() || selector.methods.contains(&head.method);
    let path_matches = || {
        selector
            .path
            .as_ref()
            .is_none_or(|path_matches| path_matches.matches(context.request_target.path()))
    };
    let client_identity = client.identity.certificate_identity.as_deref();
    let identity_matches = || {
        selector.identity.as_ref().is_none_or(|expected| {
            client_identity.is_some_and(|identity_matches| {
                expected
                    .as_deref()
                    .is_none_or(|expected| expected == identity_matches)
            })
        })
    };
    let source_matches = || {
        selector
            .source_cidr
            .is_none_or(|(range, _)| range.contains(&client.client_ip()))
    };
    method_matches && path_matches() && headers_match() && identity_matches() && source_matches()
}
