//! Limits of all instances: asking whoever keeps them, and going on without.
//!
//! All buckets that are about a request are asked for under one time-out of the policy's. What nobody answers passes, or is refused if the
//! policy fails closed; either is counted.

use std::{
    fmt::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use ring::digest::{Context, SHA256};

use super::{
    client::Client,
    rate_limits::{self, Limits},
    rejection::{Rejection, SOON},
    serve::Exchange,
};
use crate::{
    clock,
    policy::units::Span,
    resilience::{
        Mode,
        breaker::{Outcome, Speed},
    },
    state::{
        breaker::Passage,
        remote_limits::{Ask, EngineFault, RemoteLimits, Verdicts},
    },
    telemetry::{engine_metrics::EngineOutcome, reason::Reason},
};

/// So many bytes of a hash tell keys apart.
const KEY_BYTES: usize = 16;
/// The key of all that are not told apart.
const OVERFLOW: &str = "overflow";

/// Takes the tokens of a request out of every bucket of all instances that is about it; how long to wait for them.
pub(super) async fn take(
    exchange: &Exchange<'_>,
    remote: &Arc<RemoteLimits>,
    client: &Client,
    limits: &mut Limits,
    now: Instant,
) -> Result<Duration, Rejection> {
    let rules = &exchange.route.spec.rate_limits.rules;
    let (mut indices, mut asks, mut bills) = (Vec::new(), Vec::new(), Vec::new());
    for (index, rule) in rules.iter().enumerate().filter(|(_, rule)| rule.is_global) {
        let Some(key) = key(index, exchange, client, now) else {
            continue;
        };
        if rule.response_cost.is_some() {
            bills.push((indices.len(), index, key.clone()));
        }
        indices.push(index);
        asks.push(ask(
            exchange,
            index,
            key,
            rule.cost.into(),
            Some(rule.max_wait),
        ));
    }
    if asks.is_empty() {
        return Ok(Duration::ZERO);
    }
    let verdicts = answer(exchange, remote, asks, now).await;
    // What nobody answers is charged all the same; the engine may be back by then.
    let is_charged = |place: usize| {
        verdicts
            .as_ref()
            .is_none_or(|verdicts| verdicts.get(place).is_some_and(Result::is_ok))
    };
    for (_, index, key) in bills.into_iter().filter(|(place, ..)| is_charged(*place)) {
        limits.bill(index, key);
    }
    let Some(verdicts) = verdicts else {
        let fails_closed = exchange
            .live
            .snapshot
            .global_rate_limit
            .as_ref()
            .is_some_and(|global| global.fails_closed);
        let refusing = indices
            .iter()
            .map(|index| &rules[*index])
            .find(|rule| fails_closed && rule.mode == Mode::Enforce);
        let refusal = refusing
            .map(|rule| Rejection::by(Reason::RateLimitUnavailable, rule.name.clone()).after(SOON));
        return refusal.map_or(Ok(Duration::ZERO), Err);
    };
    let mut longest = Duration::ZERO;
    for (index, verdict) in indices.into_iter().zip(verdicts) {
        remote.count(if verdict.is_ok() {
            EngineOutcome::Granted
        } else {
            EngineOutcome::Refused
        });
        longest = longest.max(rate_limits::judge(exchange, limits, index, verdict)?);
    }
    Ok(longest)
}

/// Charges what an answer was worth, without making it wait.
pub(super) fn charge(exchange: &Exchange<'_>, index: usize, key: Option<String>, tokens: u64) {
    let Some(remote) = &exchange.live.remote_limits else {
        return;
    };
    if tokens > 0 {
        remote.charge(ask(exchange, index, key, tokens, None));
    }
}

/// What the engine says, if it says anything in time.
async fn answer(
    exchange: &Exchange<'_>,
    remote: &Arc<RemoteLimits>,
    asks: Vec<Ask>,
    now: Instant,
) -> Option<Verdicts> {
    let (count, timeout) = (
        asks.len(),
        exchange.live.snapshot.global_rate_limit.as_ref()?.timeout,
    );
    let failed = |outcome| {
        (0..count).for_each(|_| remote.count(outcome));
        None
    };
    let Some(engine) = remote.engine() else {
        return failed(EngineOutcome::Unavailable);
    };
    let Passage::Allowed(permit) = remote.breaker().try_acquire(now, fastrand::f64()) else {
        return failed(EngineOutcome::Suspended);
    };
    let answer = clock::within(Some(timeout), engine.ask(asks)).await;
    let outcome = if matches!(answer, Ok(Ok(_))) {
        Outcome::Success
    } else {
        Outcome::Failure
    };
    permit.settle(outcome, Speed::Fast, clock::now(), fastrand::f64());
    match answer {
        Ok(Ok(verdicts)) => Some(verdicts),
        Ok(Err(fault)) => {
            remote.report_fault(fault);
            failed(EngineOutcome::Error)
        }
        Err(clock::Elapsed) => {
            remote.report_fault(EngineFault {
                why: format!("no answer within {}", Span(timeout)),
                is_lost: false,
            });
            failed(EngineOutcome::Timeout)
        }
    }
}

fn ask(
    exchange: &Exchange<'_>,
    index: usize,
    key: Option<String>,
    tokens: u64,
    max_wait: Option<Duration>,
) -> Ask {
    let rule = &exchange.route.spec.rate_limits.rules[index];
    let name = exchange.route.rate_limits[index].name().clone();
    Ask {
        rule: name,
        key,
        quota: rule.quota,
        tokens,
        max_wait,
        is_enforced: rule.mode == Mode::Enforce,
    }
}

/// What tells a request apart from others under a rule, if anything does, the same on all instances; the hash keeps what clients send out of
/// the engine, and short. Keys beyond the bound share one. `None` if the rule is not about the request.
#[expect(
    clippy::option_option,
    reason = "selected or not, and then keyed or not, are two questions"
)]
fn key(
    index: usize,
    exchange: &Exchange<'_>,
    client: &Client,
    now: Instant,
) -> Option<Option<String>> {
    let mut hash = Context::new(&SHA256);
    if !rate_limits::select(
        &exchange.route.spec.rate_limits.rules[index],
        exchange,
        client,
        &mut |part| hash.update(part),
    )? {
        return Some(None);
    }
    let hash = hash.finish();
    let (here, _) = hash.as_ref().split_first_chunk()?;
    if !exchange.route.rate_limits[index].tells_apart(u64::from_le_bytes(*here), now) {
        return Some(Some(OVERFLOW.to_owned()));
    }
    let mut key = String::with_capacity(2 * KEY_BYTES);
    for byte in &hash.as_ref()[..KEY_BYTES] {
        // Writing to a String cannot fail.
        _ = write!(key, "{byte:02x}");
    }
    Some(Some(key))
}
