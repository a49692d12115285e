//! Endpoints that render live views and metrics, reload the policies, and change breakers.
//!
//! This module maps requests to views and commands. The views are built in `view`, and the
//! background tasks run the commands. It knows neither how a reload works nor when a breaker
//! trips.

use std::time::Duration;

use axum::{
    Json,
    extract::{ConnectInfo, Path, State as Extract},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use tokio::sync::oneshot;

use crate::{
    admin::{admin_state::AdminState, gauges, view},
    clock,
    resilience::breaker::{Breaker, Transition},
    state::instance::command::Command,
    telemetry::event::Event,
};

pub(super) type ClientAddress = std::net::SocketAddr;

pub(super) async fn metrics(Extract(admin): Extract<AdminState>) -> Response {
    gauges::record(&admin.state, clock::now());
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        admin.state.telemetry.metrics.render(),
    )
        .into_response()
}

pub(super) async fn status(
    Extract(admin): Extract<AdminState>,
) -> Json<view::instance::StatusView> {
    Json(view::instance::status(&admin.state, clock::now()))
}

pub(super) async fn routes(
    Extract(admin): Extract<AdminState>,
) -> Json<Vec<view::route::RouteView>> {
    Json(view::route::routes(&admin.state))
}

pub(super) async fn backends(
    Extract(admin): Extract<AdminState>,
) -> Json<Vec<view::backend::BackendView>> {
    Json(view::backend::backends(&admin.state, clock::now()))
}

pub(super) async fn breakers(
    Extract(admin): Extract<AdminState>,
) -> Json<Vec<view::breaker::BreakerView>> {
    Json(view::breaker::breakers(&admin.state, clock::now()))
}

pub(super) async fn limits(Extract(admin): Extract<AdminState>) -> Json<view::limit::LimitsView> {
    Json(view::limit::limits(&admin.state, clock::now()))
}

pub(super) async fn recovery(
    Extract(admin): Extract<AdminState>,
) -> Json<Vec<view::recovery::RecoveryView>> {
    Json(view::recovery::recoveries(&admin.state))
}

pub(super) async fn reload(
    Extract(admin): Extract<AdminState>,
    ConnectInfo(peer): ConnectInfo<ClientAddress>,
) -> Response {
    audit(&admin, "reload", peer);
    let (reply, response) = oneshot::channel();
    if admin
        .state
        .commands
        .try_send(Command::Reload(reply))
        .is_err()
    {
        return busy_response();
    }
    match clock::timeout(Some(Duration::from_secs(30)), response).await {
        Ok(Ok(Ok(done))) => Json(
            json!({"result": "applied", "generation": done.generation, "changes": done.changes}),
        )
        .into_response(),
        Ok(Ok(Err(faults))) => (
            StatusCode::UNPROCESSABLE_ENTITY,
            Json(json!({"result": "refused", "faults": faults})),
        )
            .into_response(),
        Ok(Err(_)) | Err(clock::Elapsed) => busy_response(),
    }
}

pub(super) async fn change_breaker(
    Extract(admin): Extract<AdminState>,
    ConnectInfo(peer): ConnectInfo<ClientAddress>,
    Path(target): Path<String>,
) -> Response {
    // The name of a breaker with the scope of an endpoint contains a slash, so the action is
    // the last segment.
    let (name, change) = target.rsplit_once('/').unwrap_or((&target, ""));
    let change: fn(&mut Breaker, std::time::Instant) -> Option<Transition> =
        match change {
            "force-open" => Breaker::force_open,
            "disable" => Breaker::disable,
            "reset" => Breaker::reset,
            "auto" => Breaker::clear_override,
            _ => return (
                StatusCode::NOT_FOUND,
                Json(json!({"error": "a breaker can be told force-open, disable, reset or auto"})),
            )
                .into_response(),
        };
    let active_policy = admin.state.active_policy.load_full();
    let Some(breaker) = active_policy
        .breakers
        .iter()
        .find(|breaker| **breaker.name() == *name)
    else {
        let known: Vec<&str> = active_policy
            .breakers
            .iter()
            .map(|breaker| &**breaker.name())
            .collect();
        return (
            StatusCode::NOT_FOUND,
            Json(json!({"error": format!("there is no breaker `{name}`"), "known": known})),
        )
            .into_response();
    };
    audit(&admin, &format!("breaker {target}"), peer);
    breaker.change_state(change, clock::now());
    Json(view::breaker::breaker(breaker, clock::now())).into_response()
}

pub(super) fn audit(admin: &AdminState, action: &str, peer: ClientAddress) {
    admin.state.telemetry.emit(Event::AdminActed {
        action: action.to_owned(),
        requested_by: peer.ip().to_string(),
    });
}

pub(super) fn busy_response() -> Response {
    (
        StatusCode::SERVICE_UNAVAILABLE,
        [(header::RETRY_AFTER, "1")],
        Json(json!({"error": "the instance is busy or leaving"})),
    )
        .into_response()
}
