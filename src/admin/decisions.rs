//! Why the last requests got what they got.

use axum::{
    Json,
    extract::{Query, State as Extract},
};
use serde::{Deserialize, Serialize};

use crate::{admin::AdminState, clock::Rfc3339, telemetry::decision_log::RequestDecisions};

/// Requests that are shown unless it is said how many.
const DEFAULT_LIMIT: usize = 100;

/// Which are shown; the last ones without either.
#[derive(Debug, Deserialize)]
pub(super) struct DecisionQuery {
    /// The one with this id.
    request: Option<String>,
    /// Those of this trace.
    trace: Option<String>,
    /// So many at most.
    limit: Option<usize>,
}

#[derive(Serialize)]
pub(super) struct DecisionTraceView {
    at: String,
    request_id: String,
    trace_id: String,
    method: String,
    host: String,
    path: String,
    route: String,
    backend: String,
    endpoint: String,
    status: u16,
    reason: String,
    attempts: u32,
    duration_ms: f64,
    steps: Vec<DecisionView>,
}

#[derive(Serialize)]
struct DecisionView {
    after_ms: f64,
    kind: &'static str,
    text: String,
}

pub(super) async fn decisions(
    Extract(admin): Extract<AdminState>,
    Query(query): Query<DecisionQuery>,
) -> Json<Vec<DecisionTraceView>> {
    let matches_query = |query: &Option<String>, actual: &str| {
        query
            .as_deref()
            .is_none_or(|query| query.eq_ignore_ascii_case(actual))
    };
    let matches_query = |trace: &RequestDecisions| {
        matches_query(&query.request, &trace.request_id)
            && matches_query(&query.trace, &trace.trace_id)
    };
    let found = admin
        .state
        .telemetry
        .decision_log
        .find(matches_query, query.limit.unwrap_or(DEFAULT_LIMIT));
    Json(found.iter().map(|trace| to_view(trace)).collect())
}

fn to_view(trace: &RequestDecisions) -> DecisionTraceView {
    let steps = trace.decisions.iter().map(|(after, step)| DecisionView {
        after_ms: after.as_secs_f64() * 1e3,
        kind: step.kind(),
        text: step.to_string(),
    });
    DecisionTraceView {
        at: Rfc3339(trace.ended_at).to_string(),
        request_id: trace.request_id.clone(),
        trace_id: trace.trace_id.clone(),
        method: trace.method.clone(),
        host: trace.host.clone(),
        path: trace.path.clone(),
        route: trace.route.clone(),
        backend: trace.backend.clone(),
        endpoint: trace.endpoint.clone(),
        status: trace.status,
        reason: trace.reason.clone(),
        attempts: trace.attempts,
        duration_ms: trace.duration.as_secs_f64() * 1e3,
        steps: steps.collect(),
    }
}
