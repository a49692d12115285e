//! Rate limits: taking a request's tokens, waiting for them, charging what its answer was worth, and telling how many are left.

use std::{
    fmt::Write as _,
    hash::{BuildHasher, Hash, Hasher},
    time::{Duration, Instant},
};

use ahash::RandomState;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{
    admission,
    client::Client,
    rejection::{Rejection, whole_seconds},
    serve::Exchange,
};
use crate::{
    clock,
    policy::{
        document::RateLimitHeaders,
        snapshot::{RateRuleSpec, SelectorSpec},
    },
    resilience::Mode,
    state::live::RouteState,
    telemetry::reason::Reason,
};

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const OLD_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const OLD_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const OLD_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// What the rate limits of a route made of a request.
#[derive(Debug, Default)]
pub(super) struct Limits {
    /// The bucket that is next to refuse, or has.
    nearest: Option<Nearest>,
    /// Buckets that are charged for the answer.
    bills: Vec<Bill>,
}

#[derive(Debug)]
struct Nearest {
    /// Its index in the route.
    rule: usize,
    left: u32,
    /// In how long there is more.
    more: Duration,
}

#[derive(Debug)]
struct Bill {
    /// The index of its rule in the route.
    rule: usize,
    key: Option<u64>,
}

/// Takes the tokens of a request out of every bucket that is about it, and waits until all are there.
pub(super) async fn admit(exchange: &Exchange<'_>, client: &mut Client, limits: &mut Limits, now: Instant) -> Result<(), Rejection> {
    let wait = take(exchange, client, limits, now)?;
    if wait.is_zero() { Ok(()) } else { Box::pin(admission::unless_gone(client, clock::sleep(wait))).await }
}

fn take(exchange: &Exchange<'_>, client: &Client, limits: &mut Limits, now: Instant) -> Result<Duration, Rejection> {
    let route = exchange.route;
    let mut longest = Duration::ZERO;
    for (index, (rule, state)) in route.spec.rate_limits.rules.iter().zip(&route.rate_limits).enumerate() {
        let Some(key) = selected(rule, exchange, client) else { continue };
        let taken = state.try_acquire(key, now);
        if rule.response_cost.is_some() {
            limits.bills.push(Bill { rule: index, key });
        }
        match taken {
            // What only watches makes nobody wait, and tells nobody.
            Ok(_) if rule.mode == Mode::Shadow => {}
            Ok(granted) => {
                longest = longest.max(granted.wait);
                if limits.nearest.as_ref().is_none_or(|nearest| granted.left < nearest.left) {
                    limits.nearest = Some(Nearest { rule: index, left: granted.left, more: rule.quota.interval() });
                }
            }
            Err(_) if rule.mode == Mode::Shadow => exchange.would_refuse(Reason::RateLimited),
            Err(limited) => {
                *limits = Limits { nearest: Some(Nearest { rule: index, left: 0, more: limited.retry_after }), bills: Vec::new() };
                return Err(Rejection::by(Reason::RateLimited, rule.name.clone()).after(limited.retry_after));
            }
        }
    }
    Ok(longest)
}

/// Charges what an answer was worth.
pub(super) fn charge(route: &RouteState, limits: &mut Limits, answer: &HeaderMap) {
    for Bill { rule, key } in limits.bills.drain(..) {
        let header = route.spec.rate_limits.rules[rule].response_cost.as_ref();
        let Some(cost) = header.and_then(|header| answer.get(header)) else { continue };
        route.rate_limits[rule].charge(key, cost.to_str().ok().and_then(|cost| cost.parse().ok()), clock::now());
    }
}

/// The headers that tell of the limit that is nearest.
pub(super) fn headers(route: &RouteState, limits: &Limits) -> impl Iterator<Item = (HeaderName, HeaderValue)> + use<> {
    let told = limits.nearest.as_ref().map(|nearest| tell(route, nearest));
    told.unwrap_or_default().into_iter().flatten()
}

fn tell(route: &RouteState, nearest: &Nearest) -> [Option<(HeaderName, HeaderValue)>; 3] {
    let spec = &route.spec.rate_limits;
    let rule = &spec.rules[nearest.rule];
    let (left, more) = (nearest.left, whole_seconds(nearest.more));
    match spec.headers {
        RateLimitHeaders::Off => [None, None, None],
        RateLimitHeaders::Draft10 => {
            let mut text = String::with_capacity(rule.name.len() + 24);
            // Writing to a String cannot fail.
            _ = write!(text, r#""{}";r={left};t={more}"#, rule.name);
            [rule.policy_header.clone().map(|policy| (POLICY, policy)), HeaderValue::try_from(text).ok().map(|limit| (LIMIT, limit)), None]
        }
        RateLimitHeaders::DraftVersion03 => [rule.policy_header.clone().map(|policy| (OLD_LIMIT, policy)), Some((OLD_REMAINING, left.into())), Some((OLD_RESET, more.into()))],
    }
}

/// The key of a request for a rule, `Some(None)` if the rule has none, `None` if the rule is not about it.
#[expect(clippy::option_option, reason = "selected or not, and then keyed or not, are two questions")]
fn selected(rule: &RateRuleSpec, exchange: &Exchange<'_>, client: &Client) -> Option<Option<u64>> {
    if rule.selectors.is_empty() {
        return Some(None);
    }
    let (index, selector) = rule.selectors.iter().enumerate().find(|(_, selector)| is_about(selector, exchange, client))?;
    let mut key = RandomState::build_hasher(exchange.hasher);
    let mut is_keyed = false;
    for (name, _) in selector.headers.iter().filter(|(_, value)| value.is_none()) {
        client.head().headers.get(name)?.as_bytes().hash(&mut key);
        is_keyed = true;
    }
    if selector.source.is_some_and(|(_, is_distinct)| is_distinct) {
        client.source().hash(&mut key);
        is_keyed = true;
    }
    if selector.identity == Some(None) {
        client.peer.identity.hash(&mut key);
        is_keyed = true;
    }
    index.hash(&mut key);
    Some(is_keyed.then(|| key.finish()))
}

fn is_about(selector: &SelectorSpec, exchange: &Exchange<'_>, client: &Client) -> bool {
    let head = client.head();
    let headers = || {
        selector.headers.iter().all(|(name, wanted)| {
            let value = head.headers.get(name);
            value.is_some_and(|value| wanted.as_ref().is_none_or(|wanted| value.as_bytes() == wanted.as_bytes()))
        })
    };
    let method = selector.methods.is_empty() || selector.methods.contains(&head.method);
    let path = || selector.path.as_ref().is_none_or(|path| path.matches(exchange.target.path()));
    let of_client = client.peer.identity.as_deref();
    let identity = || selector.identity.as_ref().is_none_or(|wanted| of_client.is_some_and(|identity| wanted.as_deref().is_none_or(|wanted| wanted == identity)));
    let source = || selector.source.is_none_or(|(range, _)| range.contains(&client.source()));
    method && path() && headers() && identity() && source()
}
