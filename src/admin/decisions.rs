//! `GET /api/v1/decisions`: the decision traces of recent requests, newest first.
//!
//! The endpoint explains why a request got its response. It knows only the requests that the
//! decision log retains: requests about which nothing was decided have no trace.

use axum::{
    Json,
    extract::{Query, State as Extract},
};
use serde::{Deserialize, Serialize};

use crate::{
    admin::admin_state::AdminState, clock::Rfc3339, telemetry::decision_log::RequestDecisions,
};

/// Maximum number of traces in a response without a `limit` parameter.
const DEFAULT_LIMIT: usize = 100;

/// Query parameters that select traces; without them, the newest traces are returned.
#[derive(Debug, Deserialize)]
pub(super) struct DecisionQuery {
    /// Request id that a trace must have, compared without case.
    request: Option<String>,
    /// Trace id that a trace must have, compared without case.
    trace: Option<String>,
    /// Maximum number of traces in the response; the default is 100.
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
