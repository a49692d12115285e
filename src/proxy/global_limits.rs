//! Limits of all instances: asking whoever keeps them, and going on without.
//!
//! All buckets that are about a request are asked for at once, under the policy's time-out. What nobody answers passes, or is refused
//! if the policy fails closed; either is counted.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use ring::digest::{Context, SHA256};

use super::{
    client::Client,
    rate_limits::{self, Limits},
    rejection::Rejection,
    serve::Exchange,
};
use crate::{
    clock,
    policy::snapshot::RateRuleSpec,
    resilience::{
        Mode,
        breaker::{Outcome, Speed},
    },
    state::{
        breaker::Passage,
        remote_limits::{Ask, RemoteLimits, Verdicts},
    },
    telemetry::{engine_metrics::EngineOutcome, reason::Reason},
};

/// So many bytes of a hash tell keys apart.
const KEY_BYTES: usize = 16;

/// Takes the tokens of a request out of every bucket of all instances that is about it; how long to wait for them.
pub(super) async fn take(exchange: &Exchange<'_>, remote: &Arc<RemoteLimits>, client: &Client, limits: &mut Limits) -> Result<Duration, Rejection> {
    let rules = &exchange.route.spec.rate_limits.rules;
    let (mut indices, mut asks) = (Vec::new(), Vec::new());
    for (index, rule) in rules.iter().enumerate().filter(|(_, rule)| rule.is_global) {
        let Some(key) = key(rule, exchange, client) else { continue };
        if rule.response_cost.is_some() {
            limits.bill(index, key.clone());
        }
        indices.push(index);
        asks.push(ask(exchange, rule, key, rule.cost.into(), Some(rule.max_wait)));
    }
    if asks.is_empty() {
        return Ok(Duration::ZERO);
    }
    let Some(verdicts) = answer(exchange, remote, asks).await else {
        let fails_closed = exchange.live.snapshot.global_rate_limit.as_ref().is_some_and(|global| global.fails_closed);
        let refusing = indices.iter().map(|index| &rules[*index]).find(|rule| fails_closed && rule.mode == Mode::Enforce);
        let refusal = refusing.map(|rule| Rejection::by(Reason::RateLimitUnavailable, rule.name.clone()).after(Duration::from_secs(1)));
        return refusal.map_or(Ok(Duration::ZERO), Err);
    };
    let mut longest = Duration::ZERO;
    for (index, verdict) in indices.into_iter().zip(verdicts) {
        remote.count(if verdict.is_ok() { EngineOutcome::Granted } else { EngineOutcome::Refused });
        longest = longest.max(rate_limits::judge(exchange, limits, index, verdict)?);
    }
    Ok(longest)
}

/// Charges what an answer was worth, without making it wait.
pub(super) fn charge(exchange: &Exchange<'_>, rule: &RateRuleSpec, key: Option<String>, tokens: u64) {
    let Some(remote) = exchange.live.remote_limits.clone() else { return };
    let Some(engine) = remote.engine() else { return remote.count(EngineOutcome::Unavailable) };
    if tokens > 0 {
        // Bounded by the connection's own patience.
        let asked = engine.ask(vec![ask(exchange, rule, key, tokens, None)]);
        tokio::spawn(async move { remote.count(if asked.await.is_ok() { EngineOutcome::Granted } else { EngineOutcome::Error }) });
    }
}

/// What the engine says, if it says anything in time.
async fn answer(exchange: &Exchange<'_>, remote: &Arc<RemoteLimits>, asks: Vec<Ask>) -> Option<Verdicts> {
    let (count, timeout) = (asks.len(), exchange.live.snapshot.global_rate_limit.as_ref()?.timeout);
    let failed = |outcome| {
        (0..count).for_each(|_| remote.count(outcome));
        None
    };
    let Some(engine) = remote.engine() else { return failed(EngineOutcome::Unavailable) };
    let Passage::Allowed(permit) = remote.breaker().try_acquire(clock::now(), fastrand::f64()) else { return failed(EngineOutcome::Suspended) };
    let answer = clock::within(Some(timeout), engine.ask(asks)).await;
    let outcome = if matches!(answer, Ok(Ok(_))) { Outcome::Success } else { Outcome::Failure };
    permit.settle(outcome, Speed::Fast, clock::now(), fastrand::f64());
    match answer {
        Ok(Ok(verdicts)) => Some(verdicts),
        Ok(Err(_)) => failed(EngineOutcome::Error),
        Err(clock::Elapsed) => failed(EngineOutcome::Timeout),
    }
}

fn ask(exchange: &Exchange<'_>, rule: &RateRuleSpec, key: Option<String>, tokens: u64, max_wait: Option<Duration>) -> Ask {
    Ask { rule: format!("{}/{}", exchange.route.spec.name, rule.name), key, quota: rule.quota, tokens, max_wait }
}

/// What tells a request apart from others under a rule, if anything does, the same on all instances; the hash keeps what clients send out of
/// the engine, and short. `None` if the rule is not about the request.
#[expect(clippy::option_option, reason = "selected or not, and then keyed or not, are two questions")]
fn key(rule: &RateRuleSpec, exchange: &Exchange<'_>, client: &Client) -> Option<Option<String>> {
    let mut hash = Context::new(&SHA256);
    if !rate_limits::select(rule, exchange, client, &mut |part| hash.update(part))? {
        return Some(None);
    }
    let mut key = String::with_capacity(2 * KEY_BYTES);
    for byte in &hash.finish().as_ref()[..KEY_BYTES] {
        // Writing to a String cannot fail.
        _ = write!(key, "{byte:02x}");
    }
    Some(Some(key))
}
