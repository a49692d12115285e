//! Who gets in: rate limits, then concurrency.
//!
//! The order matters. What is cheap and private is asked before what is dear and shared: a client's own bucket before the one
//! of all (the compiler of policies sorts the rules so), and a place in flight last, because it may have to be waited for.

use std::{
    hash::{BuildHasher, Hash, Hasher},
    sync::Arc,
    time::Instant,
};

use ahash::RandomState;

use super::{
    attempt::gone,
    client::Client,
    rejection::{LimitHeaders, Rejection},
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
        limit::{Entry, LimitGuard},
        live::RouteState,
    },
    telemetry::reason::Reason,
};

/// Lets in who may use the route at all.
pub(super) fn allowed(route: &RouteState, client: &Client) -> Result<(), Rejection> {
    let Some(allowed) = &route.spec.allowed else { return Ok(()) };
    let identity = client.peer.identity.as_deref().unwrap_or_default();
    let fits = |pattern: &str| match pattern.strip_suffix('*') {
        Some(beginning) => !identity.is_empty() && identity.starts_with(beginning),
        None => identity == pattern,
    };
    if allowed.iter().any(|pattern| fits(pattern)) { Ok(()) } else { Err(Rejection::by(Reason::NotAllowed, route.spec.name.clone())) }
}

/// Takes the tokens of a request out of every bucket that is about it.
pub(super) fn rate_limits(exchange: &Exchange<'_>, client: &Client, now: Instant) -> Result<(), Rejection> {
    let route = exchange.route;
    for (rule, state) in route.spec.rate_limits.rules.iter().zip(&route.rate_limits) {
        let Some(key) = selected(rule, client, exchange.hasher) else { continue };
        let Err(limited) = state.try_acquire(key, now) else { continue };
        if rule.mode == Mode::Shadow {
            exchange.would_refuse(Reason::RateLimited);
            continue;
        }
        let limit = (route.spec.rate_limits.headers == RateLimitHeaders::Draft10).then(|| LimitHeaders { rule: rule.name.clone(), quota: rule.quota });
        return Err(Rejection { limit, ..Rejection::by(Reason::RateLimited, rule.name.clone()) }.after(limited.retry_after));
    }
    Ok(())
}

/// The key of a request for a rule, `Some(None)` if the rule has none, `None` if the rule is not about it.
#[expect(clippy::option_option, reason = "selected or not, and then keyed or not, are two questions")]
fn selected(rule: &RateRuleSpec, client: &Client, hasher: &RandomState) -> Option<Option<u64>> {
    if rule.selectors.is_empty() {
        return Some(None);
    }
    let (index, selector) = rule.selectors.iter().enumerate().find(|(_, selector)| is_about(selector, client))?;
    let mut key = hasher.build_hasher();
    let mut is_keyed = false;
    for (name, _) in selector.headers.iter().filter(|(_, value)| value.is_none()) {
        client.head().headers.get(name)?.as_bytes().hash(&mut key);
        is_keyed = true;
    }
    if selector.source.is_some_and(|(_, is_distinct)| is_distinct) {
        client.peer.address.hash(&mut key);
        is_keyed = true;
    }
    if selector.identity == Some(None) {
        client.peer.identity.hash(&mut key);
        is_keyed = true;
    }
    index.hash(&mut key);
    Some(is_keyed.then(|| key.finish()))
}

fn is_about(selector: &SelectorSpec, client: &Client) -> bool {
    let headers = selector.headers.iter().all(|(name, wanted)| {
        let value = client.head().headers.get(name);
        value.is_some_and(|value| wanted.as_ref().is_none_or(|wanted| value.as_bytes() == wanted.as_bytes()))
    });
    let of_client = client.peer.identity.as_deref();
    let identity = selector.identity.as_ref().is_none_or(|wanted| of_client.is_some_and(|identity| wanted.as_deref().is_none_or(|wanted| wanted == identity)));
    headers && selector.source.is_none_or(|(range, _)| range.contains(&client.peer.address.to_canonical())) && identity
}

/// Takes a place in flight, or waits for one.
pub(super) async fn enter(exchange: &Exchange<'_>, client: &mut Client) -> Result<Option<LimitGuard>, Rejection> {
    let (Some(limit), Some(spec)) = (&exchange.destination.limit, &exchange.destination.policy.limits) else {
        return Ok(None);
    };
    let refused = |reason| Rejection::by(reason, Arc::clone(limit.name())).after(std::time::Duration::from_secs(1));
    match limit.enter() {
        Entry::Admitted(guard) => Ok(Some(guard)),
        Entry::WouldRefuse(guard) => {
            exchange.would_refuse(Reason::ConcurrencyLimit);
            Ok(Some(guard))
        }
        Entry::Refused => Err(refused(Reason::ConcurrencyLimit)),
        Entry::Queued(waiting) => {
            // While a body is on its way, reading from the client would take of it; then only the time ends the wait.
            let may_watch = client.is_body_done();
            let turn = async {
                tokio::select! {
                    biased;
                    guard = waiting => Ok(Some(guard)),
                    reason = client.gone(), if may_watch => Err(gone(reason)),
                }
            };
            clock::within(Some(spec.pending_timeout), turn).await.unwrap_or_else(|_| Err(refused(Reason::QueueTimeout)))
        }
    }
}
