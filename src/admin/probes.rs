//! The liveness, readiness and startup probes of this instance.
//!
//! Each probe reads state in memory and calls nothing. The verbose form lists each condition
//! with its state, the time since its last change, and the reason. A failed probe always
//! responds in the verbose form. The module does not know what sets the conditions.

use axum::{
    extract::{RawQuery, State as Extract},
    http::StatusCode,
    response::{IntoResponse, Response},
};

use crate::{
    admin::admin_state::AdminState, clock, state::instance::lifecycle::ReadinessCondition,
};

/// `/livez` passes while every worker thread of the data plane makes progress.
///
/// It checks nothing else, so that no failed dependency gets this process restarted.
pub(super) async fn livez(
    Extract(admin): Extract<AdminState>,
    RawQuery(query): RawQuery,
) -> Response {
    let now = clock::now();
    let stuck = admin.state.lifecycle.stuck_workers(now);
    let lines = match stuck.as_slice() {
        [] => vec!["[+] all workers make progress".to_owned()],
        stuck => stuck
            .iter()
            .map(|(worker, since)| {
                format!("[-] worker {worker} has made no progress for {since:.0?}")
            })
            .collect(),
    };
    probe_response(stuck.is_empty(), is_verbose(query.as_deref()), &lines)
}

/// `/readyz` passes while every readiness condition is met.
pub(super) async fn readyz(
    Extract(admin): Extract<AdminState>,
    RawQuery(query): RawQuery,
) -> Response {
    let lifecycle = &admin.state.lifecycle;
    let mut lines: Vec<String> = lifecycle
        .conditions()
        .iter()
        .map(format_condition)
        .collect();
    match lifecycle.policy_current() {
        Ok(()) => lines.push("[+] policy-current: the newest policies are active".to_owned()),
        Err(reason) => lines.push(format!(
            "[!] policy-current: the last valid policies are active, a newer set is invalid \
             (does not affect readiness): {}",
            reason.replace('\n', "; ")
        )),
    }
    lines.extend(
        lifecycle
            .reports()
            .into_iter()
            .map(|(name, state)| match state {
                Ok(detail) => format!("[+] {name}: {detail}"),
                Err(reason) => {
                    let reason = reason.replace('\n', "; ");
                    format!("[!] {name} (does not affect readiness): {reason}")
                }
            }),
    );
    probe_response(lifecycle.is_ready(), is_verbose(query.as_deref()), &lines)
}

/// `/startupz` passes once policies were in force and all listeners were bound.
pub(super) async fn startupz(
    Extract(admin): Extract<AdminState>,
    RawQuery(query): RawQuery,
) -> Response {
    let lines: Vec<String> = admin
        .state
        .lifecycle
        .conditions()
        .iter()
        .map(format_condition)
        .collect();
    probe_response(
        admin.state.lifecycle.has_started(),
        is_verbose(query.as_deref()),
        &lines,
    )
}

fn format_condition(condition: &ReadinessCondition) -> String {
    let sign = if condition.is_met { '+' } else { '-' };
    let since = clock::now().saturating_duration_since(condition.since);
    format!(
        "[{sign}] {} for {since:.1?}: {}",
        condition.name, condition.reason
    )
}

fn is_verbose(query: Option<&str>) -> bool {
    query.is_some_and(|query| {
        query
            .split('&')
            .any(|part| part == "verbose" || part.starts_with("verbose="))
    })
}

fn probe_response(is_passing: bool, is_verbose: bool, lines: &[String]) -> Response {
    let (status, word) = if is_passing {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ok")
    };
    // A failed probe lists the conditions even without `verbose`, so that its log shows the reason.
    let body = if is_verbose || !is_passing {
        format!("{}\n{word}\n", lines.join("\n"))
    } else {
        format!("{word}\n")
    };
    (status, body).into_response()
}
