//! The limits: concurrency, retry budgets, rates, admission control and overload protection.

use std::time::Instant;

use serde::Serialize;

use crate::{
    admin::view::rate_limit::{RateLimitView, rate_limits},
    resilience::Mode,
    state::{
        State,
        active_policy::ActivePolicy,
        instance::protection::ProtectionState,
        policies::{
            admission_control::AdmissionState, concurrency_limit::ConcurrencyLimitState,
            retry_budget::RetryBudgetState,
        },
    },
    telemetry::label::Label,
};

#[derive(Serialize)]
pub(in crate::admin) struct LimitsView {
    concurrency: Vec<ConcurrencyView>,
    retry_budgets: Vec<RetryBudgetView>,
    rate: Vec<RateLimitView>,
    admission: Vec<AdmissionView>,
    /// Engine of the global rate limits, if the policies configure them.
    global: Option<GlobalRateLimitView>,
    /// Overload protection and its signals, if the policies configure it.
    protection: Option<ProtectionView>,
}

/// Attempts that an admission control counted in its window, and its rejection probability.
#[derive(Serialize)]
struct AdmissionView {
    name: String,
    mode: &'static str,
    attempts: u32,
    good: u32,
    rejection_percent: f64,
}

#[derive(Serialize)]
struct ProtectionView {
    mode: &'static str,
    level: &'static str,
    /// Share of the requests in the third priority class (`normal` by default) that are shed,
    /// in `0.0..=100.0`.
    normal_refused_percent: f64,
    signals: Vec<SignalView>,
}

#[derive(Serialize)]
struct SignalView {
    name: &'static str,
    percent: f64,
    level: &'static str,
}

#[derive(Serialize)]
struct GlobalRateLimitView {
    engine: String,
    /// Whether the engine is connected; absent if the engine needs no connection.
    is_connected: Option<bool>,
    fails_closed: bool,
}

#[derive(Serialize)]
struct ConcurrencyView {
    name: String,
    mode: &'static str,
    in_flight: u32,
    /// Requests in flight whose response has not begun.
    working: u32,
    max_in_flight: u32,
    pending: u32,
    max_pending: u32,
    refused: u64,
    adaptive: Option<AdaptiveView>,
}

#[derive(Serialize)]
struct AdaptiveView {
    mode: &'static str,
    limit: u32,
}

#[derive(Serialize)]
struct RetryBudgetView {
    name: String,
    remaining: u32,
    percent: f64,
}

pub(in crate::admin) fn limits(state: &State, now: Instant) -> LimitsView {
    let active_policy = state.active_policy.load();
    LimitsView {
        concurrency: active_policy
            .policy_states
            .concurrency_limit
            .iter()
            .map(|limit| render_concurrency_limit(limit))
            .collect(),
        retry_budgets: active_policy
            .retry_budgets
            .iter()
            .map(|budget| render_retry_budget(budget, now))
            .collect(),
        rate: active_policy.routes.iter().flat_map(rate_limits).collect(),
        admission: active_policy
            .policy_states
            .admission_control
            .iter()
            .map(|admission| render_admission_control(admission, now))
            .collect(),
        global: render_global_rate_limit(&active_policy),
        protection: active_policy
            .snapshot
            .protection
            .as_ref()
            .map(|spec| render_protection(&state.protection, spec.mode)),
    }
}

fn render_concurrency_limit(limit: &ConcurrencyLimitState) -> ConcurrencyView {
    let snapshot = limit.snapshot();
    ConcurrencyView {
        name: limit.name().to_string(),
        mode: snapshot.mode.name(),
        in_flight: snapshot.in_flight,
        working: snapshot.awaiting_response,
        max_in_flight: snapshot.config.max_in_flight.get(),
        pending: snapshot.pending,
        max_pending: snapshot.config.max_pending,
        refused: snapshot.rejected,
        adaptive: snapshot
            .adaptive
            .map(|(limit, component_mode)| AdaptiveView {
                mode: component_mode.name(),
                limit,
            }),
    }
}

fn render_retry_budget(budget: &RetryBudgetState, now: Instant) -> RetryBudgetView {
    RetryBudgetView {
        name: budget.name().to_string(),
        remaining: budget.remaining(now),
        percent: budget.config().share.percent(),
    }
}

fn render_admission_control(admission: &AdmissionState, now: Instant) -> AdmissionView {
    let (calls, rejection, component_mode) = admission.snapshot(now);
    AdmissionView {
        name: admission.name().to_string(),
        mode: component_mode.name(),
        attempts: calls.total,
        good: calls.successes,
        rejection_percent: rejection.percent(),
    }
}

fn render_global_rate_limit(active_policy: &ActivePolicy) -> Option<GlobalRateLimitView> {
    let spec = active_policy.snapshot.global_rate_limit.as_ref()?;
    Some(GlobalRateLimitView {
        engine: spec.to_string(),
        is_connected: active_policy
            .remote_limits
            .as_ref()
            .map(|remote| remote.engine().is_some()),
        fails_closed: spec.fails_closed,
    })
}

fn render_protection(protection: &ProtectionState, mode: Mode) -> ProtectionView {
    ProtectionView {
        mode: mode.name(),
        level: protection.level().label(),
        normal_refused_percent: protection.shed_ratio() * 100.0,
        signals: protection
            .signal_readings()
            .into_iter()
            .map(|(signal, value, level)| SignalView {
                name: signal.label(),
                percent: value * 100.0,
                level: level.label(),
            })
            .collect(),
    }
}
