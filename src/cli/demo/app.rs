//! The embedded app of the demo, which responds normally or with a fault that can be switched.
//!
//! Faults are set by the scenario or with `POST /fault/{none,errors,slow}`.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};

use crate::clock;

/// Fault that the app injects into its responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DemoFault {
    /// The app responds normally.
    None,
    /// Every response has status 503.
    Errors,
    /// Every response takes two seconds.
    Slow,
}

impl DemoFault {
    /// Returns the name of the fault in the URL that sets it, and in the status line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Errors => "errors",
            Self::Slow => "slow",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        [Self::None, Self::Errors, Self::Slow]
            .into_iter()
            .find(|fault| fault.name() == name)
    }
}

/// Current fault, shared by the app and the scenario of the demo.
#[derive(Debug, Default)]
pub(super) struct FaultSwitch {
    fault: AtomicU8,
    flaky_requests: AtomicU64,
}

impl FaultSwitch {
    pub(super) fn set(&self, fault: DemoFault) {
        let number = match fault {
            DemoFault::None => 0,
            DemoFault::Errors => 1,
            DemoFault::Slow => 2,
        };
        self.fault.store(number, Ordering::Relaxed);
    }

    pub(super) fn current(&self) -> DemoFault {
        match self.fault.load(Ordering::Relaxed) {
            1 => DemoFault::Errors,
            2 => DemoFault::Slow,
            _ => DemoFault::None,
        }
    }
}

/// Starts the app on a free loopback port and returns its address.
pub(super) async fn start(faults: Arc<FaultSwitch>) -> io::Result<SocketAddr> {
    let router = Router::new()
        .route("/", get(hello).post(hello))
        .route("/flaky", get(flaky))
        .route("/fault/{fault}", post(set_fault))
        .with_state(faults);
    let listener = tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!("the demo's app ended: {error}");
        }
    });
    Ok(address)
}

async fn hello(State(faults): State<Arc<FaultSwitch>>) -> Response {
    match faults.current() {
        DemoFault::None => "hello from the app\n".into_response(),
        DemoFault::Errors => {
            (StatusCode::SERVICE_UNAVAILABLE, "the app is broken\n").into_response()
        }
        DemoFault::Slow => {
            clock::sleep(Duration::from_secs(2)).await;
            "hello, slowly\n".into_response()
        }
    }
}

/// Fails every second request, so that a retry succeeds.
async fn flaky(State(faults): State<Arc<FaultSwitch>>) -> Response {
    match faults.flaky_requests.fetch_add(1, Ordering::Relaxed) % 2 {
        0 => (StatusCode::SERVICE_UNAVAILABLE, "not this time\n").into_response(),
        _ => "hello from the app, at the second try\n".into_response(),
    }
}

async fn set_fault(State(faults): State<Arc<FaultSwitch>>, Path(fault): Path<String>) -> Response {
    let Some(fault) = DemoFault::parse(&fault) else {
        return (
            StatusCode::NOT_FOUND,
            "unknown fault: write none, errors or slow\n",
        )
            .into_response();
    };
    faults.set(fault);
    format!("{}\n", fault.name()).into_response()
}
