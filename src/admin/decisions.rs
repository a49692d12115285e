//! Why the last requests got what they got.

use axum::{
    Json,
    extract::{Query, State as Extract},
};
use serde::{Deserialize, Serialize};

use super::Admin;
use crate::{clock::Rfc3339, telemetry::decisions::Decided};

/// Requests that are shown unless it is said how many.
const USUAL: usize = 100;

/// Which are shown; the last ones without either.
#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    /// The one with this id.
    request: Option<String>,
    /// Those of this trace.
    trace: Option<String>,
    /// So many at most.
    limit: Option<usize>,
}

#[derive(Serialize)]
pub(super) struct Decision {
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
    steps: Vec<Step>,
}

#[derive(Serialize)]
struct Step {
    after_ms: f64,
    kind: &'static str,
    text: String,
}

pub(super) async fn decisions(
    Extract(admin): Extract<Admin>,
    Query(wanted): Query<Wanted>,
) -> Json<Vec<Decision>> {
    let fits = |wanted: &Option<String>, of: &str| {
        wanted
            .as_deref()
            .is_none_or(|wanted| wanted.eq_ignore_ascii_case(of))
    };
    let fits = |decided: &Decided| {
        fits(&wanted.request, &decided.request_id) && fits(&wanted.trace, &decided.trace_id)
    };
    let found = admin
        .state
        .telemetry
        .decisions
        .find(fits, wanted.limit.unwrap_or(USUAL));
    Json(found.iter().map(|decided| view(decided)).collect())
}

fn view(decided: &Decided) -> Decision {
    let steps = decided.steps.iter().map(|(after, step)| Step {
        after_ms: after.as_secs_f64() * 1e3,
        kind: step.kind(),
        text: step.to_string(),
    });
    Decision {
        at: Rfc3339(decided.at).to_string(),
        request_id: decided.request_id.clone(),
        trace_id: decided.trace_id.clone(),
        method: decided.method.clone(),
        host: decided.host.clone(),
        path: decided.path.clone(),
        route: decided.route.clone(),
        backend: decided.backend.clone(),
        endpoint: decided.endpoint.clone(),
        status: decided.status,
        reason: decided.reason.clone(),
        attempts: decided.attempts,
        duration_ms: decided.took.as_secs_f64() * 1e3,
        steps: steps.collect(),
    }
}
