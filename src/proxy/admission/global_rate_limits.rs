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

use crate::{
    clock,
    policy::units::PolicyDuration,
    proxy::{
        admission::rate_limit_rules::{apply_acquisition, write_key},
        downstream::task::RequestTask,
        request::{
            context::RequestContext,
            rejection::{DEFAULT_RETRY_AFTER, Rejection},
            view::RequestView,
        },
    },
    resilience::{
        Mode,
        breaker::{CallOutcome, Speed},
    },
    state::policies::{
        breaker::BreakerDecision,
        remote_limits::{BucketRequest, BucketResults, EngineFault, RemoteLimits},
    },
    telemetry::{engine_metrics::EngineOutcome, reason::Reason},
};

/// So many bytes of a hash tell keys apart.
const KEY_BYTES: usize = 16;
/// The key of all that are not told apart.
const OVERFLOW_KEY: &str = "overflow";

/// Takes the tokens of a request out of every bucket of all instances that is about it; how long to wait for them.
pub(crate) async fn acquire(
    task: &mut RequestTask<'_>,
    remote: &Arc<RemoteLimits>,
    now: Instant,
) -> Result<Duration, Rejection> {
    let context = &task.context;
    let outcome = &mut task.record.rate_limits;
    let request = task.client.request_view();
    let rules = &context.route.spec.rate_limits.rules;
    let (mut indices, mut requests, mut pending_charges) = (Vec::new(), Vec::new(), Vec::new());
    for (index, rule) in rules.iter().enumerate().filter(|(_, rule)| rule.is_global) {
        let Some(key) = limit_key(index, context, &request, now) else {
            continue;
        };
        if rule.response_cost_header.is_some() {
            pending_charges.push((indices.len(), index, key.clone()));
        }
        indices.push(index);
        requests.push(build_request(
            context,
            index,
            key,
            rule.cost.into(),
            Some(rule.max_wait),
        ));
    }
    if requests.is_empty() {
        return Ok(Duration::ZERO);
    }
    let verdicts = query_engine(context, remote, requests, now).await;
    // What nobody answers is charged all the same; the engine may be back by then.
    let is_charged = |position: usize| {
        verdicts
            .as_ref()
            .is_none_or(|verdicts| verdicts.get(position).is_some_and(Result::is_ok))
    };
    for (_, index, key) in pending_charges
        .into_iter()
        .filter(|(position, ..)| is_charged(*position))
    {
        outcome.add_global_charge(index, key);
    }
    let Some(verdicts) = verdicts else {
        let fails_closed = context
            .active_policy
            .snapshot
            .global_rate_limit
            .as_ref()
            .is_some_and(|global| global.fails_closed);
        let failing_rule = indices
            .iter()
            .map(|index| &rules[*index])
            .find(|rule| fails_closed && rule.mode == Mode::Enforce);
        let rejection = failing_rule.map(|rule| {
            Rejection::new(Reason::RateLimitUnavailable, rule.name.clone())
                .with_retry_after(DEFAULT_RETRY_AFTER)
        });
        return rejection.map_or(Ok(Duration::ZERO), Err);
    };
    let mut longest_wait = Duration::ZERO;
    for (index, verdict) in indices.into_iter().zip(verdicts) {
        remote.record_outcome(if verdict.is_ok() {
            EngineOutcome::Granted
        } else {
            EngineOutcome::Refused
        });
        longest_wait = longest_wait.max(apply_acquisition(context, outcome, index, verdict)?);
    }
    Ok(longest_wait)
}

/// Charges what an answer was worth, without making it wait.
pub(crate) fn charge_response(
    context: &RequestContext<'_>,
    index: usize,
    key: Option<String>,
    tokens: u64,
) {
    let Some(remote) = &context.active_policy.remote_limits else {
        return;
    };
    if tokens > 0 {
        remote.enqueue_charge(build_request(context, index, key, tokens, None));
    }
}

/// What the engine says, if it says anything in time.
async fn query_engine(
    context: &RequestContext<'_>,
    remote: &Arc<RemoteLimits>,
    requests: Vec<BucketRequest>,
    now: Instant,
) -> Option<BucketResults> {
    let (count, timeout) = (
        requests.len(),
        context
            .active_policy
            .snapshot
            .global_rate_limit
            .as_ref()?
            .timeout,
    );
    let count_failure = |outcome| {
        (0..count).for_each(|_| remote.record_outcome(outcome));
        None
    };
    let Some(engine) = remote.engine() else {
        return count_failure(EngineOutcome::Unavailable);
    };
    let BreakerDecision::Admitted(permit) = remote.breaker().try_acquire(now, fastrand::f64())
    else {
        return count_failure(EngineOutcome::Suspended);
    };
    let response = clock::timeout(Some(timeout), engine.send_requests(requests)).await;
    let outcome = if matches!(response, Ok(Ok(_))) {
        CallOutcome::Success
    } else {
        CallOutcome::Failure
    };
    permit.settle(outcome, Speed::Fast, clock::now(), fastrand::f64());
    match response {
        Ok(Ok(verdicts)) => Some(verdicts),
        Ok(Err(engine_fault)) => {
            remote.report_fault(engine_fault);
            count_failure(EngineOutcome::Error)
        }
        Err(clock::Elapsed) => {
            remote.report_fault(EngineFault {
                reason: format!("no answer within {}", PolicyDuration(timeout)),
                is_connection_lost: false,
            });
            count_failure(EngineOutcome::Timeout)
        }
    }
}

fn build_request(
    context: &RequestContext<'_>,
    index: usize,
    key: Option<String>,
    tokens: u64,
    max_wait: Option<Duration>,
) -> BucketRequest {
    let rule = &context.route.spec.rate_limits.rules[index];
    let name = context.route.rate_limits[index].name().clone();
    BucketRequest {
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
fn limit_key(
    index: usize,
    context: &RequestContext<'_>,
    request: &RequestView<'_>,
    now: Instant,
) -> Option<Option<String>> {
    let mut hash = Context::new(&SHA256);
    if !write_key(
        &context.route.spec.rate_limits.rules[index],
        context,
        request,
        &mut |part| hash.update(part),
    )? {
        return Some(None);
    }
    let hash = hash.finish();
    let (local_key, _) = hash.as_ref().split_first_chunk()?;
    if !context.route.rate_limits[index].track_key(u64::from_le_bytes(*local_key), now) {
        return Some(Some(OVERFLOW_KEY.to_owned()));
    }
    let mut key = String::with_capacity(2 * KEY_BYTES);
    for byte in &hash.as_ref()[..KEY_BYTES] {
        // Writing to a String cannot fail.
        _ = write!(key, "{byte:02x}");
    }
    Some(Some(key))
}
