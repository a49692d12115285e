//! Evaluates one rate limit rule for one request: whether the rule selects it, its bucket key,
//! and the effect of the bucket's decision.
//!
//! The module does not know where the bucket is kept: in this instance or in a shared engine.

use std::{net::IpAddr, time::Duration};

use crate::{
    policy::sections::rate_limit::spec::{RateLimitRuleSpec, SelectorSpec},
    proxy::request::{
        context::RequestContext,
        evidence,
        rate_limit_outcome::{NearestLimit, RateLimitOutcome},
        rejection::Rejection,
        view::RequestView,
    },
    resilience::Mode,
    state::policies::rate_limit::{RateLimitGrant, RateLimited},
    telemetry::reason::Reason,
};

/// Applies the decision of a bucket to a request and returns the wait for the tokens.
///
/// An enforced rule updates the nearest limit, which the rate limit headers report. A rule in
/// shadow mode causes no wait and no header; a rejection is only recorded.
///
/// # Errors
/// A rejection if an enforced rule's bucket has too few tokens. It cancels all pending charges.
pub(crate) fn apply_acquisition(
    context: &RequestContext<'_>,
    outcome: &mut RateLimitOutcome,
    index: usize,
    acquired: Result<RateLimitGrant, RateLimited>,
) -> Result<Duration, Rejection> {
    let rule = &context.route.spec.rate_limits.rules[index];
    match acquired {
        // A rule in shadow mode delays no request and appears in no header.
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
            evidence::record_shadow_rejection(
                context,
                &Rejection::new(Reason::RateLimited, rule.name.clone()),
            );
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

/// Writes the bucket key of a request under a rule and returns whether it has any part.
///
/// Returns `None` if the rule does not select the request. The parts are the values that the
/// matching selector declares as distinct. Requests with different parts never write the same
/// bytes.
pub(crate) fn write_key(
    rule: &RateLimitRuleSpec,
    context: &RequestContext<'_>,
    request: &RequestView<'_>,
    write: &mut impl FnMut(&[u8]),
) -> Option<bool> {
    if rule.selectors.is_empty() {
        return Some(false);
    }
    let (index, selector) = rule
        .selectors
        .iter()
        .enumerate()
        .find(|(_, selector)| selector_matches(selector, context, request))?;
    let mut is_keyed = false;
    let mut write_part = |bytes: &[u8]| {
        is_keyed = true;
        write(bytes);
        // Header values and identities contain no line feed, so it separates the parts.
        write(b"\n");
    };
    for (name, _) in selector.headers.iter().filter(|(_, value)| value.is_none()) {
        write_part(request.head.headers.get(name)?);
    }
    if selector
        .source_cidr
        .is_some_and(|(_, is_distinct)| is_distinct)
    {
        match request.client_ip() {
            IpAddr::V4(address) => write_part(&address.to_ipv6_mapped().octets()),
            IpAddr::V6(address) => write_part(&address.octets()),
        }
    }
    if selector.identity == Some(None) {
        write_part(request.identity.certificate_identity.as_deref()?.as_bytes());
    }
    write(&index.to_le_bytes());
    Some(is_keyed)
}

fn selector_matches(
    selector: &SelectorSpec,
    context: &RequestContext<'_>,
    request: &RequestView<'_>,
) -> bool {
    let head = request.head;
    let headers_match = || {
        selector.headers.iter().all(|(name, expected)| {
            let value = head.headers.get(name);
            value.is_some_and(|value| {
                expected
                    .as_ref()
                    .is_none_or(|expected| value == expected.as_bytes())
            })
        })
    };
    let method_matches = selector.methods.is_empty() || selector.methods.contains(&head.method);
    let path_matches = || {
        selector
            .path
            .as_ref()
            .is_none_or(|path| path.matches(context.request_target.path()))
    };
    let client_identity = request.identity.certificate_identity.as_deref();
    let identity_matches = || {
        selector.identity.as_ref().is_none_or(|expected| {
            client_identity.is_some_and(|identity| {
                expected
                    .as_deref()
                    .is_none_or(|expected| expected == identity)
            })
        })
    };
    let source_matches = || {
        selector
            .source_cidr
            .is_none_or(|(range, _)| range.contains(&request.client_ip()))
    };
    method_matches && path_matches() && headers_match() && identity_matches() && source_matches()
}
