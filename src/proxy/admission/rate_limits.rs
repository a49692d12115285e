//! Rate limits of a route: a request takes tokens from every bucket that selects it, and its
//! response may be charged to the bucket afterwards.
//!
//! The module decides the order and the total wait. It does not know the token arithmetic,
//! which is in `resilience::gcra`.

use std::{
    hash::{BuildHasher, Hasher},
    time::{Duration, Instant},
};

use ahash::RandomState;

use crate::{
    clock,
    message::headers::{Headers, as_text},
    policy::sections::rate_limit::spec::RateLimitRuleSpec,
    proxy::{
        admission::{
            global_rate_limits,
            rate_limit_rules::{apply_acquisition, write_key},
        },
        downstream::task::RequestTask,
        request::{
            context::RequestContext,
            rate_limit_outcome::{ChargeKey, PendingCharge, RateLimitOutcome},
            rejection::Rejection,
            view::RequestView,
        },
    },
};

/// Takes the tokens of a request from every bucket that selects it, and waits until all are
/// available.
///
/// # Errors
/// A rejection if a bucket has too few tokens within the maximum wait of its rule, or if the
/// client closes during the wait.
pub(crate) async fn admit(task: &mut RequestTask<'_>, now: Instant) -> Result<(), Rejection> {
    let mut ready_at = now + acquire_local(task, now)?;
    let context = task.context;
    let rules = &context.route.spec.rate_limits.rules;
    // The policy compiler sorts global rules to the end, so the last rule shows whether one
    // exists.
    if let (Some(remote), true) = (
        &context.active_policy.remote_limits,
        rules.last().is_some_and(|rule| rule.is_global),
    ) {
        let wait = Box::pin(global_rate_limits::acquire(task, remote, now)).await?;
        ready_at = ready_at.max(clock::now() + wait);
    }
    if ready_at <= now {
        Ok(())
    } else {
        Box::pin(task.while_connected(clock::sleep_until(ready_at))).await
    }
}

/// Takes tokens from the buckets of this instance and returns the longest wait for them.
fn acquire_local(task: &mut RequestTask<'_>, now: Instant) -> Result<Duration, Rejection> {
    let context = &task.context;
    let request = task.client.request_view();
    let outcome = &mut task.record.rate_limits;
    let route = context.route;
    let mut longest_wait = Duration::ZERO;
    let is_global =
        |rule: &RateLimitRuleSpec| rule.is_global && context.active_policy.remote_limits.is_some();
    let rules = route.spec.rate_limits.rules.iter();
    for (index, (rule, state)) in rules.zip(&route.rate_limits).enumerate() {
        if is_global(rule) {
            break;
        }
        let Some(key) = select_local_key(rule, context, &request) else {
            continue;
        };
        let acquired = state.try_acquire(key, now);
        // In shadow mode, a request that would be rejected is not charged for its response.
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

/// Charges the cost that a response states to the buckets that wait for it.
///
/// A response without the cost header is charged nothing. A cost that is not a number is
/// counted as invalid.
pub(crate) fn charge_response(
    context: &RequestContext<'_>,
    outcome: &mut RateLimitOutcome,
    response_headers: &Headers,
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
        let tokens = as_text(cost).and_then(|cost| cost.parse().ok());
        match (key, tokens) {
            (ChargeKey::Global(key), Some(tokens)) => {
                global_rate_limits::charge_response(context, index, key, tokens)
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

/// Returns the bucket key of a request under a rule of this instance.
///
/// Returns `Some(None)` if the rule has one bucket for all requests, and `None` if the rule
/// does not select the request.
#[expect(
    clippy::option_option,
    reason = "selected or not, and then keyed or not, are two questions"
)]
fn select_local_key(
    rule: &RateLimitRuleSpec,
    context: &RequestContext<'_>,
    request: &RequestView<'_>,
) -> Option<Option<u64>> {
    if rule.selectors.is_empty() {
        return Some(None);
    }
    let mut key = RandomState::build_hasher(&context.worker.state.rate_limit_hasher);
    let is_keyed = write_key(rule, context, request, &mut |part| key.write(part))?;
    Some(is_keyed.then(|| key.finish()))
}
