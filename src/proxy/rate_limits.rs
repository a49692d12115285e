//! Rate limits: taking a request's tokens, waiting for them, charging what its answer was worth, and telling how many are left.

use std::{
    fmt::Write as _,
    hash::{BuildHasher, Hasher},
    net::IpAddr,
    time::{Duration, Instant},
};

use ahash::RandomState;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{
    admission,
    client::Client,
    global_limits,
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
    state::{
        live::RouteState,
        rate_limit::{Granted, Limited},
    },
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
    key: BillKey,
}

/// Which bucket is charged.
#[derive(Debug)]
enum BillKey {
    /// One of this instance.
    Here(Option<u64>),
    /// One of all instances.
    There(Option<String>),
}

impl Limits {
    /// Notes that a bucket of all instances is charged for the answer.
    pub(super) fn bill(&mut self, rule: usize, key: Option<String>) {
        self.bills.push(Bill {
            rule,
            key: BillKey::There(key),
        });
    }
}

/// Takes the tokens of a request out of every bucket that is about it, and waits until all are there.
pub(super) async fn admit(
    exchange: &Exchange<'_>,
    client: &mut Client,
    limits: &mut Limits,
    now: Instant,
) -> Result<(), Rejection> {
    let mut until = now + take(exchange, client, limits, now)?;
    // Rules of all instances stand at the end.
    if let (Some(remote), true) = (
        &exchange.live.remote_limits,
        exchange
            .route
            .spec
            .rate_limits
            .rules
            .last()
            .is_some_and(|rule| rule.is_global),
    ) {
        let wait = Box::pin(global_limits::take(exchange, remote, client, limits, now)).await?;
        until = until.max(clock::now() + wait);
    }
    if until <= now {
        Ok(())
    } else {
        Box::pin(admission::unless_gone(client, clock::sleep_until(until))).await
    }
}

fn take(
    exchange: &Exchange<'_>,
    client: &Client,
    limits: &mut Limits,
    now: Instant,
) -> Result<Duration, Rejection> {
    let route = exchange.route;
    let mut longest = Duration::ZERO;
    let is_remote = |rule: &RateRuleSpec| rule.is_global && exchange.live.remote_limits.is_some();
    for (index, (rule, state)) in route
        .spec
        .rate_limits
        .rules
        .iter()
        .zip(&route.rate_limits)
        .enumerate()
    {
        if is_remote(rule) {
            break;
        }
        let Some(key) = selected(rule, exchange, client) else {
            continue;
        };
        let taken = state.try_acquire(key, now);
        // In shadow, who would not have come in would not have been worth anything.
        if rule.response_cost.is_some() && taken.is_ok() {
            limits.bills.push(Bill {
                rule: index,
                key: BillKey::Here(key),
            });
        }
        longest = longest.max(judge(exchange, limits, index, taken)?);
    }
    Ok(longest)
}

/// What it means that a bucket gave tokens, or not: how long to wait for them.
pub(super) fn judge(
    exchange: &Exchange<'_>,
    limits: &mut Limits,
    index: usize,
    taken: Result<Granted, Limited>,
) -> Result<Duration, Rejection> {
    let rule = &exchange.route.spec.rate_limits.rules[index];
    match taken {
        // What only watches makes nobody wait, and tells nobody.
        Ok(_) if rule.mode == Mode::Shadow => Ok(Duration::ZERO),
        Ok(granted) => {
            if limits
                .nearest
                .as_ref()
                .is_none_or(|nearest| granted.left < nearest.left)
            {
                limits.nearest = Some(Nearest {
                    rule: index,
                    left: granted.left,
                    more: granted.more,
                });
            }
            Ok(granted.wait)
        }
        Err(_) if rule.mode == Mode::Shadow => {
            exchange.would_refuse(Reason::RateLimited, &rule.name);
            Ok(Duration::ZERO)
        }
        Err(limited) => {
            *limits = Limits {
                nearest: Some(Nearest {
                    rule: index,
                    left: 0,
                    more: limited.retry_after,
                }),
                bills: Vec::new(),
            };
            Err(Rejection::by(Reason::RateLimited, rule.name.clone()).after(limited.retry_after))
        }
    }
}

/// Charges what an answer was worth.
pub(super) fn charge(exchange: &Exchange<'_>, limits: &mut Limits, answer: &HeaderMap) {
    let route = exchange.route;
    for Bill { rule: index, key } in limits.bills.drain(..) {
        let rule = &route.spec.rate_limits.rules[index];
        let Some(cost) = rule
            .response_cost
            .as_ref()
            .and_then(|header| answer.get(header))
        else {
            continue;
        };
        let tokens = cost.to_str().ok().and_then(|cost| cost.parse().ok());
        match (key, tokens) {
            (BillKey::There(key), Some(tokens)) => {
                global_limits::charge(exchange, index, key, tokens)
            }
            (BillKey::There(_), None) => route.rate_limits[index].charge(None, None, clock::now()),
            (BillKey::Here(key), tokens) => {
                route.rate_limits[index].charge(key, tokens, clock::now())
            }
        }
    }
}

/// The headers that tell of the limit that is nearest.
pub(super) fn headers(
    route: &RouteState,
    limits: &Limits,
) -> impl Iterator<Item = (HeaderName, HeaderValue)> + use<> {
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
            [
                rule.policy_header.clone().map(|policy| (POLICY, policy)),
                HeaderValue::try_from(text).ok().map(|limit| (LIMIT, limit)),
                None,
            ]
        }
        RateLimitHeaders::DraftVersion03 => [
            rule.policy_header.clone().map(|policy| (OLD_LIMIT, policy)),
            Some((OLD_REMAINING, left.into())),
            Some((OLD_RESET, more.into())),
        ],
    }
}

/// The key of a request for a rule of this instance, `Some(None)` if the rule has none, `None` if the rule is not about it.
#[expect(
    clippy::option_option,
    reason = "selected or not, and then keyed or not, are two questions"
)]
fn selected(rule: &RateRuleSpec, exchange: &Exchange<'_>, client: &Client) -> Option<Option<u64>> {
    if rule.selectors.is_empty() {
        return Some(None);
    }
    let mut key = RandomState::build_hasher(exchange.hasher);
    let is_keyed = select(rule, exchange, client, &mut |part| key.write(part))?;
    Some(is_keyed.then(|| key.finish()))
}

/// Writes what tells requests apart under a rule, each part such that no other text makes the same; whether there is anything. `None` if
/// the rule is not about the request.
pub(super) fn select(
    rule: &RateRuleSpec,
    exchange: &Exchange<'_>,
    client: &Client,
    put: &mut impl FnMut(&[u8]),
) -> Option<bool> {
    if rule.selectors.is_empty() {
        return Some(false);
    }
    let (index, selector) = rule
        .selectors
        .iter()
        .enumerate()
        .find(|(_, selector)| is_about(selector, exchange, client))?;
    let mut is_keyed = false;
    let mut part = |bytes: &[u8]| {
        is_keyed = true;
        put(bytes);
        // No header, and no identity, has one in it.
        put(b"\n");
    };
    for (name, _) in selector.headers.iter().filter(|(_, value)| value.is_none()) {
        part(client.head().headers.get(name)?.as_bytes());
    }
    if selector.source.is_some_and(|(_, is_distinct)| is_distinct) {
        match client.source() {
            IpAddr::V4(address) => part(&address.to_ipv6_mapped().octets()),
            IpAddr::V6(address) => part(&address.octets()),
        }
    }
    if selector.identity == Some(None) {
        part(client.peer.identity.as_deref()?.as_bytes());
    }
    put(&index.to_le_bytes());
    Some(is_keyed)
}

fn is_about(selector: &SelectorSpec, exchange: &Exchange<'_>, client: &Client) -> bool {
    let head = client.head();
    let headers = || {
        selector.headers.iter().all(|(name, wanted)| {
            let value = head.headers.get(name);
            value.is_some_and(|value| {
                wanted
                    .as_ref()
                    .is_none_or(|wanted| value.as_bytes() == wanted.as_bytes())
            })
        })
    };
    let method = selector.methods.is_empty() || selector.methods.contains(&head.method);
    let path = || {
        selector
            .path
            .as_ref()
            .is_none_or(|path| path.matches(exchange.target.path()))
    };
    let of_client = client.peer.identity.as_deref();
    let identity = || {
        selector.identity.as_ref().is_none_or(|wanted| {
            of_client
                .is_some_and(|identity| wanted.as_deref().is_none_or(|wanted| wanted == identity))
        })
    };
    let source = || {
        selector
            .source
            .is_none_or(|(range, _)| range.contains(&client.source()))
    };
    method && path() && headers() && identity() && source()
}
