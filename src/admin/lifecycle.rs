//! Coming and going: draining, waiting for it, and the app's own probes.

use axum::{
    Json,
    extract::{ConnectInfo, Path, Query, State as Extract},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use tokio::sync::{mpsc::error::TrySendError, oneshot};

use super::{
    Admin,
    api::{Peer, audit, busy},
    view,
};
use crate::{
    clock,
    resilience::lifecycle::Stage,
    state::{
        capacity,
        command::{AppAnswer, Command, Going},
    },
};

/// What is asked of a drain.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Wishes {
    /// Not to begin if the others cannot carry the load.
    require_capacity: bool,
}

/// Sends the callers away. What the others have to expect is told with the answer.
pub(super) async fn drain(Extract(admin): Extract<Admin>, ConnectInfo(peer): ConnectInfo<Peer>, Query(wishes): Query<Wishes>) -> Response {
    let (present, forecast) = capacity::forecast(&admin.state, clock::now());
    let expected = view::capacity(&present, &forecast);
    // What has begun is not taken back.
    if wishes.require_capacity && !forecast.verdict.is_enough() && !admin.state.departure.is_draining() {
        return (StatusCode::CONFLICT, Json(json!({"draining": false, "capacity": expected}))).into_response();
    }
    audit(&admin, "drain", peer);
    match admin.state.commands.try_send(Command::Drain { asked_by: "the admin API", going: Going::Stays }) {
        Ok(()) | Err(TrySendError::Closed(_)) => (StatusCode::ACCEPTED, Json(json!({"draining": true, "capacity": expected}))).into_response(),
        Err(TrySendError::Full(_)) => busy(),
    }
}

/// Ends the instance, because the app has: there is nobody to be called, and nobody who calls.
pub(super) async fn quit(Extract(admin): Extract<Admin>, ConnectInfo(peer): ConnectInfo<Peer>) -> Response {
    audit(&admin, "quit", peer);
    match admin.state.commands.try_send(Command::Drain { asked_by: "quitquitquit", going: Going::AppIsGone }) {
        Ok(()) | Err(TrySendError::Closed(_)) => (StatusCode::OK, "quitting\n").into_response(),
        Err(TrySendError::Full(_)) => busy(),
    }
}

/// Answers once the callers are gone: for the hook of an app that is to live as long as it is called. It begins nothing by itself.
pub(super) async fn drained(Extract(admin): Extract<Admin>) -> Response {
    let mut stages = admin.state.departure.stages();
    // The state outlives this.
    _ = stages.wait_for(|stage| *stage >= Stage::Drained).await;
    "drained\n".into_response()
}

/// What the app says to one of its own probes, or whether it can be connected to.
pub(super) async fn app_health(Extract(admin): Extract<Admin>, Path(probe): Path<String>) -> Response {
    let live = admin.state.live.load_full();
    let Some(probes) = &live.snapshot.lifecycle.app_probes else {
        return (StatusCode::NOT_FOUND, "nobody knows which backend is the app: `lifecycle.startup.requireBackend` names it\n").into_response();
    };
    let path = match probe.as_str() {
        "livez" => &probes.livez,
        "readyz" => &probes.readyz,
        "startupz" => &probes.startupz,
        "connect" => &None,
        _ => return (StatusCode::NOT_FOUND, "there are livez, readyz, startupz and connect\n").into_response(),
    };
    if path.is_none() && probe != "connect" {
        return (StatusCode::NOT_FOUND, format!("the app's check has no path: `lifecycle.appProbes.{probe}` names one\n")).into_response();
    }
    let (reply, answer) = oneshot::channel();
    if admin.state.commands.try_send(Command::AskApp { backend: probes.backend, path: path.clone(), reply }).is_err() {
        return busy();
    }
    match answer.await {
        Ok(Ok(AppAnswer { status, body })) => {
            (StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY), [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
        }
        Ok(Err(why)) => (StatusCode::SERVICE_UNAVAILABLE, format!("the app does not answer: {why}\n")).into_response(),
        Err(_) => busy(),
    }
}
