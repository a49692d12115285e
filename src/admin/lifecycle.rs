//! Coming and going: draining, waiting for it, and the app's own probes.

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
        AdminState,
        api::{ClientAddress, audit, busy_response},
        view,
    },
    clock,
    resilience::lifecycle::Stage,
    state::instance::{
        capacity,
        command::{AfterDrain, AppProbeResponse, Command},
    },
};

/// Sends the callers away. What the others have to expect is told with the answer.
pub(super) async fn drain(
    Extract(admin): Extract<AdminState>,
    ConnectInfo(peer): ConnectInfo<ClientAddress>,
    RawQuery(query): RawQuery,
) -> Response {
    let requires_capacity =
        query.is_some_and(|query| query.split('&').any(|part| part == "requireCapacity=true"));
    let (present, forecast) = capacity::forecast(&admin.state, clock::now());
    let expected = view::capacity(&present, &forecast);
    // What has begun is not taken back.
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

/// Ends the instance, because the app has: there is nobody to be called, and nobody who calls.
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

/// Returns when it has begun, so that a probe after the answer says so; whether it has.
async fn begin_drain(admin: &AdminState, asked_by: &'static str, after_drain: AfterDrain) -> bool {
    let (started_sender, started) = oneshot::channel();
    match admin.state.commands.try_send(Command::Drain {
        requested_by: asked_by,
        after_drain,
        started: started_sender,
    }) {
        // Who does not answer any more is gone.
        Ok(()) => drop(started.await),
        Err(TrySendError::Closed(_)) => {}
        Err(TrySendError::Full(_)) => return false,
    }
    true
}

/// Answers once the callers are gone: for the hook of an app that is to live as long as it is called. It begins nothing by itself.
pub(super) async fn wait_until_drained(Extract(admin): Extract<AdminState>) -> Response {
    let mut stages = admin.state.drain.subscribe_stages();
    // The state outlives this.
    _ = stages.wait_for(|stage| *stage >= Stage::Drained).await;
    "drained\n".into_response()
}

/// What the app says to one of its own probes, or whether it can be connected to.
pub(super) async fn probe_app(
    Extract(admin): Extract<AdminState>,
    Path(probe): Path<String>,
) -> Response {
    let active_policy = admin.state.active_policy.load_full();
    let Some(probes) = &active_policy.snapshot.lifecycle.app_probes else {
        return (
            StatusCode::NOT_FOUND,
            "nobody knows which backend is the app: `lifecycle.startup.requireBackend` names it\n",
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
    // The background takes wishes as they come; a probe may wait its turn.
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
            format!("the app does not answer: {reason}\n"),
        )
            .into_response(),
        Err(_) => busy_response(),
    }
}
