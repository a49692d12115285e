//! The admin server: probes, metrics, live views, and the changes that are possible at run time.
//!
//! It runs on its own thread, so that probes get a response while the data plane is overloaded
//! or drains. It renders what [`State`] holds and decides nothing itself. GET and HEAD requests
//! need no authorization. A POST request needs the bearer token, or comes from this host and
//! not from a browser page.
//!
//! | endpoint | purpose |
//! | --- | --- |
//! | `GET /livez`, `/readyz`, `/startupz` (`?verbose`) | probes of this instance |
//! | `GET /metrics` | metrics in the Prometheus text format |
//! | `GET /api/v1/status` | summary of the instance |
//! | `GET /api/v1/{routes,backends,breakers,limits,recovery}` | live views |
//! | `GET /api/v1/decisions` (`?request=ID`, `?trace=ID`) | decision traces of recent requests |
//! | `GET /api/v1/events` | server-sent events: the retained events, then each new event |
//! | `GET /app-health/{livez,readyz,startupz,connect}` | probe or connection check of the app |
//! | `GET /drained` | responds when the instance has drained |
//! | `POST /api/v1/{drain,reload}` | starts the drain; reloads the policies |
//! | `POST /quitquitquit` | drains and ends, because the app has ended |
//! | `POST /api/v1/breakers/NAME/{force-open,disable,reset,auto}` | changes a breaker |

mod admin_state;
mod api;
mod decisions;
mod events;
mod gauges;
mod lifecycle;
mod probes;
mod view;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
};

use axum::{
    Router,
    extract::{ConnectInfo, Request, State as Extract},
    http::{Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};

use tokio::sync::watch;

use crate::{
    admin::admin_state::AdminState,
    resilience::lifecycle::Stage,
    state::{State, instance::listener_sockets::AcceptScope},
};

/// Serves the admin API on the socket until the instance has handed over to its successor.
///
/// If `gate` is given, serving starts only when it reports [`AcceptScope::All`].
///
/// # Errors
/// Returns the I/O error if the socket cannot be used.
pub async fn serve(
    socket: TcpListener,
    state: Arc<State>,
    token: Option<String>,
    gate: Option<watch::Receiver<AcceptScope>>,
) -> io::Result<()> {
    // Until the gate opens, another process serves the probes at this address.
    if let Some(mut gate) = gate {
        _ = gate.wait_for(|gate| *gate == AcceptScope::All).await;
    }
    let (mut stages, shutdown_state) = (state.drain.subscribe_stages(), state.clone());
    let admin = AdminState {
        state,
        token: token.map(Arc::from),
    };
    let router = Router::new()
        .route("/", get(list_paths))
        .route("/livez", get(probes::livez))
        .route("/readyz", get(probes::readyz))
        .route("/startupz", get(probes::startupz))
        .route("/metrics", get(api::metrics))
        .route("/api/v1/status", get(api::status))
        .route("/api/v1/routes", get(api::routes))
        .route("/api/v1/backends", get(api::backends))
        .route("/api/v1/breakers", get(api::breakers))
        .route("/api/v1/limits", get(api::limits))
        .route("/api/v1/recovery", get(api::recovery))
        .route("/api/v1/decisions", get(decisions::decisions))
        .route("/api/v1/events", get(events::stream_events))
        .route("/app-health/{probe}", get(lifecycle::probe_app))
        .route("/drained", get(lifecycle::wait_until_drained))
        .route("/quitquitquit", post(lifecycle::quit))
        .route("/api/v1/drain", post(lifecycle::drain))
        .route("/api/v1/reload", post(api::reload))
        .route("/api/v1/breakers/{*target}", post(api::change_breaker))
        .fallback(|| async {
            (
                StatusCode::NOT_FOUND,
                "there is nothing here; GET / lists what there is\n",
            )
        })
        .layer(middleware::from_fn_with_state(admin.clone(), authorize))
        .with_state(admin);
    let listener = tokio::net::TcpListener::from_std(socket)?;
    // After a handover, the successor serves the probes at this address, so this server stops.
    let handed_over = async move {
        // This cannot fail: `shutdown_state` keeps the sender of the stages alive.
        _ = stages
            .wait_for(|stage| *stage > Stage::Serving && shutdown_state.drain.is_handed_over())
            .await;
    };
    axum::serve(
        listener,
        router.into_make_service_with_connect_info::<SocketAddr>(),
    )
    .with_graceful_shutdown(handed_over)
    .await
}

async fn list_paths() -> &'static str {
    concat!(
        "GET  /livez /readyz /startupz (?verbose)",
        " /app-health/{livez,readyz,startupz,connect} /drained\n",
        "GET  /metrics\n",
        "GET  /api/v1/status /api/v1/routes /api/v1/backends /api/v1/breakers /api/v1/limits",
        " /api/v1/recovery\n",
        "GET  /api/v1/decisions (?request=ID, ?trace=ID, ?limit=N) /api/v1/events\n",
        "POST /quitquitquit /api/v1/drain (?requireCapacity=true) /api/v1/reload",
        " /api/v1/breakers/NAME/{force-open,disable,reset,auto}\n",
    )
}

/// Admits GET and HEAD from everywhere, and other methods only from an authorized client.
///
/// A client is authorized if it presents the bearer token. A client on this host needs no
/// token, unless the request has an `origin` header. Browsers send that header, so a web page
/// cannot change the instance without the token.
async fn authorize(
    Extract(admin): Extract<AdminState>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    if request.method() == Method::GET || request.method() == Method::HEAD {
        return next.run(request).await;
    }
    let presented_token = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    let has_token = admin
        .token
        .as_deref()
        .zip(presented_token)
        .is_some_and(|(token, presented_token)| is_equal_in_constant_time(token, presented_token));
    let is_page = request.headers().contains_key(header::ORIGIN);
    if has_token || (peer.ip().to_canonical().is_loopback() && !is_page) {
        return next.run(request).await;
    }
    (
        StatusCode::FORBIDDEN,
        "only from this host, or with the bearer token of --admin-token-file\n",
    )
        .into_response()
}

/// Compares two tokens of equal length in constant time, so that the time reveals no prefix.
fn is_equal_in_constant_time(token: &str, presented_token: &str) -> bool {
    token.len() == presented_token.len()
        && token
            .bytes()
            .zip(presented_token.bytes())
            .fold(0, |difference, (a, b)| difference | (a ^ b))
            == 0
}
