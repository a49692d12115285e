//! A connection to an endpoint: an idle one from the pool, or a new one.

use std::{sync::Arc, time::Instant};

use pingora::protocols::http::v1::client::HttpSession;

use super::{
    pool::Idle,
    socket::Socket,
    wire::{self, Wire},
    worker::Worker,
};
use crate::{
    clock,
    state::endpoint::{ConnectionGuard, EndpointState},
};

/// A connection to an endpoint, with one exchange on it.
pub(super) struct Upstream {
    /// The framing of the request and its answer; boxed, because it is handed on from step to step.
    pub(super) session: Box<HttpSession>,
    /// The transport below.
    pub(super) wire: Arc<Wire>,
    /// The endpoint.
    pub(super) endpoint: Arc<EndpointState>,
    guard: ConnectionGuard,
    /// What the wire had sent before this exchange.
    sent_before: u64,
}

/// There is no connection.
#[derive(Debug)]
pub(super) enum NoConnection {
    /// Refused, unreachable, or no socket to be had.
    Failed,
    /// It took too long.
    TimedOut,
    /// The backend has as many as it may.
    TooMany,
}

/// Takes or makes a connection.
pub(super) async fn connect(
    worker: &Worker,
    endpoint: &Arc<EndpointState>,
    is_repeatable: bool,
    max_connections: u32,
    until: Option<Instant>,
    now: Instant,
) -> Result<Upstream, NoConnection> {
    if let Some(idle) = worker.pool().take(endpoint, is_repeatable, now) {
        return Ok(Upstream::new(idle, endpoint.clone()));
    }
    let guard = match endpoint.counters.try_connect(max_connections) {
        Some(guard) => guard,
        // An idle connection to a sibling, or one too old for this request, may give its place.
        None if worker.evict_one(endpoint) => endpoint.counters.try_connect(max_connections).ok_or(NoConnection::TooMany)?,
        None => return Err(NoConnection::TooMany),
    };
    let socket = match clock::until(until, Socket::connect(&endpoint.address)).await {
        Ok(Ok(socket)) => socket,
        Ok(Err(error)) => {
            tracing::debug!("no connection to {}: {error}", endpoint.label);
            return Err(NoConnection::Failed);
        }
        Err(clock::Elapsed) => return Err(NoConnection::TimedOut),
    };
    let (stream, wire) = wire::open(socket);
    Ok(Upstream::new(Idle { stream, wire, guard }, endpoint.clone()))
}

impl Upstream {
    fn new(connection: Idle, endpoint: Arc<EndpointState>) -> Self {
        let Idle { stream, wire, guard } = connection;
        Self { session: Box::new(HttpSession::new(stream)), sent_before: wire.sent(), wire, endpoint, guard }
    }

    /// Whether any byte of this exchange's request left.
    pub(super) fn has_sent(&self) -> bool {
        self.wire.sent() > self.sent_before
    }

    /// Gives the connection back to the pool if its exchange is complete on both sides; else it is closed.
    pub(super) async fn release(mut self, worker: &Worker, is_request_complete: bool, now: Instant) {
        if !is_request_complete || !self.wire.is_pushed() || !self.session.is_body_done() {
            return;
        }
        if let Some(hint) = self.session.resp_header().and_then(super::headers::keep_alive_hint) {
            self.endpoint.learn_idle_close(hint, now);
        }
        self.session.respect_keepalive();
        if let Some(stream) = self.session.reuse().await {
            worker.pool().put(&self.endpoint, Idle { stream, wire: self.wire, guard: self.guard }, now);
        }
    }
}
