//! Lifecycle endpoints: starting the drain, waiting for its end, and the app's own probes.
//!
//! The module decides only whether a drain is rejected for lack of capacity. The background
//! tasks drain the instance and probe the app; this module sends them commands and reports the
//! result.

use axum::{
    Json,
    extract::{ConnectInfo, Path, RawQuery, State as Extract},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use tokio::sync::{mpsc::error::TrySendError, oneshot};

use crate::{
    admin::{
        admin_state::AdminState,
        api::{ClientAddress, audit, busy_response},
        view,
    },
    clock,
    resilience::lifecycle::Stage,
    state::instance::command::{AfterDrain, AppProbeResponse, Command, NO_APP_RESPONSE},
};

/// Starts the drain and reports the load that the other replicas have to expect.
///
/// With `requireCapacity=true`, the response is 409 and no drain starts, unless the other
/// replicas are known to have enough capacity.
pub(super) async fn drain(
    Extract(admin): Extract<AdminState>,
    ConnectInfo(peer): ConnectInfo<ClientAddress>,
    RawQuery(query): RawQuery,
) -> Response {
    let requires_capacity =
        query.is_some_and(|query| query.split('&').any(|part| part == "requireCapacity=true"));
    let (present, forecast) = admin.state.forecast_capacity(clock::now());
    let expected = view::instance::capacity(&present, &forecast);
    // A drain that has already begun cannot be cancelled, so it is not rejected.
    if requires_capacity && !forecast.verdict.is_sufficient() && !admin.state.drain.is_draining() {
        return (
            StatusCode::CONFLICT,
            Json(json!({"draining": false, "capacity": expected})),
        )
            .into_response();
    }
    audit(&admin, "drain", peer);
    if begin_drain(&admin, "the admin API", AfterDrain::KeepServing).await {
        (
            StatusCode::ACCEPTED,
            Json(json!({"draining": true, "capacity": expected})),
        )
            .into_response()
    } else {
        busy_response()
    }
}

/// Drains and ends the instance without an announcement delay, because the app has ended.
pub(super) async fn quit(
    Extract(admin): Extract<AdminState>,
    ConnectInfo(peer): ConnectInfo<ClientAddress>,
) -> Response {
    audit(&admin, "quit", peer);
    if begin_drain(&admin, "quitquitquit", AfterDrain::TerminateWithoutDelay).await {
        "quitting\n".into_response()
    } else {
        busy_response()
    }
}

/// Starts the drain and returns once it has begun, so that later probes observe it.
///
/// Returns `false` if the command queue is full. Returns `true` also if the instance is already
/// ending.
async fn begin_drain(admin: &AdminState, asked_by: &'static str, after_drain: AfterDrain) -> bool {
    let (started_sender, started) = oneshot::channel();
    match admin.state.commands.try_send(Command::Drain {
        requested_by: asked_by,
        after_drain,
        started: started_sender,
    }) {
        // An error means that the background task has ended, so the instance is ending anyway.
        Ok(()) => drop(started.await),
        Err(TrySendError::Closed(_)) => {}
        Err(TrySendError::Full(_)) => return false,
    }
    true
}

/// Responds when the instance has drained, for an app's pre-stop hook. It starts no drain itself.
pub(super) async fn wait_until_drained(Extract(admin): Extract<AdminState>) -> Response {
    let mut stages = admin.state.drain.subscribe_stages();
    // This cannot fail: `admin` keeps the sender of the stages alive.
    _ = stages.wait_for(|stage| *stage >= Stage::Drained).await;
    "drained\n".into_response()
}

/// Returns the app's response to one of its probes, or whether the app accepts a connection.
pub(super) async fn probe_app(
    Extract(admin): Extract<AdminState>,
    Path(probe): Path<String>,
) -> Response {
    let active_policy = admin.state.active_policy.load_full();
    let Some(probes) = &active_policy.snapshot.lifecycle.app_probes else {
        return (
            StatusCode::NOT_FOUND,
            "the backend of the app is unknown: set `lifecycle.startup.requireBackend`\n",
        )
            .into_response();
    };
    let path = match probe.as_str() {
        "livez" => &probes.livez_path,
        "readyz" => &probes.readyz_path,
        "startupz" => &probes.startupz_path,
        "connect" => &None,
        _ => {
            return (
                StatusCode::NOT_FOUND,
                "there are livez, readyz, startupz and connect\n",
            )
                .into_response();
        }
    };
    if path.is_none() && probe != "connect" {
        return (
            StatusCode::NOT_FOUND,
            format!("the app's check has no path: `lifecycle.appProbes.{probe}` names one\n"),
        )
            .into_response();
    }
    let (reply, response) = oneshot::channel();
    let backend = active_policy.backends[probes.backend].spec.name.clone();
    // The background task takes commands one at a time, so a probe waits for space in the queue.
    if admin
        .state
        .commands
        .send(Command::ProbeApp {
            backend,
            path: path.clone(),
            reply,
        })
        .await
        .is_err()
    {
        return busy_response();
    }
    match response.await {
        Ok(Ok(AppProbeResponse { status, body })) => (
            StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY),
            [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
            body,
        )
            .into_response(),
        Ok(Err(reason)) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{NO_APP_RESPONSE}: {reason}\n"),
        )
            .into_response(),
        Err(_) => busy_response(),
    }
}
