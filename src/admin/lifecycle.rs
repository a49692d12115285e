//! Coming and going: draining, waiting for it, and the app's own probes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json,
    body::Bytes,
    extract::{ConnectInfo, Path, RawQuery, State as Extract},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use tokio::sync::{Mutex, mpsc::error::TrySendError, oneshot};

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

/// How long an answer of the app's is given again: whoever asks all the time costs the app nothing, and keeps nobody's probe waiting.
const FRESH: Duration = Duration::from_millis(500);

/// What the app said last to each probe. Who asks meanwhile waits for the same answer.
#[derive(Debug, Default)]
pub(super) struct AppProbes([Mutex<Option<(Instant, Said)>>; 4]);

type Said = (StatusCode, Bytes);

/// Sends the callers away. What the others have to expect is told with the answer.
pub(super) async fn drain(Extract(admin): Extract<Admin>, ConnectInfo(peer): ConnectInfo<Peer>, RawQuery(query): RawQuery) -> Response {
    let requires_capacity = query.is_some_and(|query| query.split('&').any(|part| part == "requireCapacity=true"));
    let (present, forecast) = capacity::forecast(&admin.state, clock::now());
    let expected = view::capacity(&present, &forecast);
    // What has begun is not taken back.
    if requires_capacity && !forecast.verdict.is_enough() && !admin.state.departure.is_draining() {
        return (StatusCode::CONFLICT, Json(json!({"draining": false, "capacity": expected}))).into_response();
    }
    audit(&admin, "drain", peer);
    if begin(&admin, "the admin API", Going::Stays).await { (StatusCode::ACCEPTED, Json(json!({"draining": true, "capacity": expected}))).into_response() } else { busy() }
}

/// Ends the instance, because the app has: there is nobody to be called, and nobody who calls.
pub(super) async fn quit(Extract(admin): Extract<Admin>, ConnectInfo(peer): ConnectInfo<Peer>) -> Response {
    audit(&admin, "quit", peer);
    if begin(&admin, "quitquitquit", Going::AppIsGone).await { "quitting\n".into_response() } else { busy() }
}

/// Returns when it has begun, so that a probe after the answer says so; whether it has.
async fn begin(admin: &Admin, asked_by: &'static str, going: Going) -> bool {
    let (begun, has_begun) = oneshot::channel();
    match admin.state.commands.try_send(Command::Drain { asked_by, going, begun }) {
        // Who does not answer any more is gone.
        Ok(()) => drop(has_begun.await),
        Err(TrySendError::Closed(_)) => {}
        Err(TrySendError::Full(_)) => return false,
    }
    true
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
    let (place, path) = match probe.as_str() {
        "livez" => (0, &probes.livez),
        "readyz" => (1, &probes.readyz),
        "startupz" => (2, &probes.startupz),
        "connect" => (3, &None),
        _ => return (StatusCode::NOT_FOUND, "there are livez, readyz, startupz and connect\n").into_response(),
    };
    if path.is_none() && probe != "connect" {
        return (StatusCode::NOT_FOUND, format!("the app's check has no path: `lifecycle.appProbes.{probe}` names one\n")).into_response();
    }
    let mut last = admin.app.0[place].lock().await;
    let said = match last.as_ref().filter(|(at, _)| clock::now().saturating_duration_since(*at) < FRESH) {
        Some((_, said)) => said.clone(),
        None => {
            let said = ask(&admin, live.backends[probes.backend].spec.name.clone(), path.clone()).await;
            *last = Some((clock::now(), said.clone()));
            said
        }
    };
    (said.0, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], said.1).into_response()
}

async fn ask(admin: &Admin, backend: Arc<str>, path: Option<Arc<str>>) -> Said {
    let (reply, answer) = oneshot::channel();
    // At most four are out, so there is room among the wishes; and who hears none any more is ending.
    let is_asked = admin.state.commands.send(Command::AskApp { backend, path, reply }).await.is_ok();
    match answer.await {
        Ok(Ok(AppAnswer { status, body })) if is_asked => (StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY), body),
        Ok(Err(why)) => (StatusCode::SERVICE_UNAVAILABLE, format!("the app does not answer: {why}\n").into()),
        Ok(Ok(_)) | Err(_) => (StatusCode::SERVICE_UNAVAILABLE, Bytes::from_static(b"the sidecar is ending\n")),
    }
}
