//! Global rate limits: buckets that all instances share and that a remote engine keeps.
//!
//! All buckets that select a request are queried at once, under one timeout of the policy.
//! Without a result in time, the request is admitted, or rejected if the policy fails closed.
//! The engine metrics count either case.
//!
//! The module does not know the protocol of the engine or its address.

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

/// Bytes of the SHA-256 hash that form a bucket key. The key is twice as many hexadecimal
/// digits.
const KEY_BYTES: usize = 16;
/// Key that requests share when a rule already tracks its maximum number of keys.
const OVERFLOW_KEY: &str = "overflow";

/// Takes the tokens of a request from every global bucket that selects it.
///
/// Returns the longest wait for the tokens.
///
/// # Errors
/// A rejection if a bucket has too few tokens, or if the policy fails closed and the engine
/// returns no result.
pub(crate) async fn acquire(
    task: &mut RequestTask<'_>,
    remote: &Arc<RemoteLimits>,
    now: Instant,
) -> Result<Duration, Rejection> {
    let context = &task.context;
    let outcome = &mut task.record.rate_limits;
    let request = task.client.request_view();
    let SelectedBuckets {
        rule_indices,
        requests,
        response_charges,
    } = SelectedBuckets::from_request(context, &request, now);
    if requests.is_empty() {
        return Ok(Duration::ZERO);
    }
    let verdicts = query_engine(context, remote, requests, now).await;
    // Without a result from the engine, the response is charged anyway. The engine may have
    // recovered by then.
    let is_charged = |position: usize| {
        verdicts
            .as_ref()
            .is_none_or(|verdicts| verdicts.get(position).is_some_and(Result::is_ok))
    };
    for (position, key) in response_charges {
        if is_charged(position) {
            outcome.add_global_charge(rule_indices[position], key);
        }
    }
    let Some(verdicts) = verdicts else {
        return unavailable_rejection(context, &rule_indices).map_or(Ok(Duration::ZERO), Err);
    };
    let mut longest_wait = Duration::ZERO;
    for (index, verdict) in rule_indices.into_iter().zip(verdicts) {
        remote.record_outcome(if verdict.is_ok() {
            EngineOutcome::Granted
        } else {
            EngineOutcome::Refused
        });
        longest_wait = longest_wait.max(apply_acquisition(context, outcome, index, verdict)?);
    }
    Ok(longest_wait)
}

/// Queues the charge for the cost of a response, without delaying the response.
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

/// Global buckets that one request is charged to.
#[derive(Default)]
struct SelectedBuckets {
    /// Index in the route of the rule of each bucket.
    rule_indices: Vec<usize>,
    /// Request to the engine for each bucket.
    requests: Vec<BucketRequest>,
    /// Position and key of each bucket that is charged again for the response.
    response_charges: Vec<(usize, Option<String>)>,
}

impl SelectedBuckets {
    fn from_request(context: &RequestContext<'_>, request: &RequestView<'_>, now: Instant) -> Self {
        let mut buckets = Self::default();
        let rules = context.route.spec.rate_limits.rules.iter().enumerate();
        for (index, rule) in rules.filter(|(_, rule)| rule.is_global) {
            let Some(key) = limit_key(index, context, request, now) else {
                continue;
            };
            if rule.response_cost_header.is_some() {
                let position = buckets.requests.len();
                buckets.response_charges.push((position, key.clone()));
            }
            buckets.rule_indices.push(index);
            buckets.requests.push(build_request(
                context,
                index,
                key,
                rule.cost.into(),
                Some(rule.max_wait),
            ));
        }
        buckets
    }
}

/// Returns the rejection of a request for which the engine has no result; `None` if the policy
/// fails open, or enforces none of the rules.
fn unavailable_rejection(
    context: &RequestContext<'_>,
    rule_indices: &[usize],
) -> Option<Rejection> {
    let global = context.active_policy.snapshot.global_rate_limit.as_ref();
    if global.is_none_or(|global| !global.fails_closed) {
        return None;
    }
    let rules = &context.route.spec.rate_limits.rules;
    let enforced_rule = rule_indices
        .iter()
        .map(|index| &rules[*index])
        .find(|rule| rule.mode == Mode::Enforce)?;
    Some(
        Rejection::new(Reason::RateLimitUnavailable, enforced_rule.name.clone())
            .with_retry_after(DEFAULT_RETRY_AFTER),
    )
}

/// Queries the engine for all buckets of a request.
///
/// Returns `None` if the engine is not connected, its breaker is open, the query fails, or the
/// timeout ends.
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
                reason: format!("no response within {}", PolicyDuration(timeout)),
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

/// Returns the bucket key of a request under a global rule, which is the same on all instances.
///
/// Returns `Some(None)` if the rule has one bucket for all requests, and `None` if the rule
/// does not select the request. The key is a hash: it keeps client data out of the engine and
/// bounds the key length. Requests beyond the maximum number of tracked keys share one key.
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
        // Writing to a string cannot fail.
        _ = write!(key, "{byte:02x}");
    }
    Some(Some(key))
}
