//! The life of a request, from top to bottom.

use std::{sync::Arc, time::Instant};

use ahash::RandomState;
use http::{HeaderName, HeaderValue};
use pingora::http::RequestHeader;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    admission,
    attempt::{self, Answered},
    authority::{self, Target},
    client::Client,
    degradation, faults, framing, headers, mirroring,
    notes::{self, Notes},
    rate_limits::{self, Limits},
    rejection::{self, Instead, Rejection},
    relay,
    request_body::RequestBody,
    routing,
    worker::Worker,
};
use crate::{
    clock::{self, Rfc3339},
    policy::{
        document::Direction,
        matching::Rule,
        snapshot::{ActionSpec, Protocol, RedirectSpec},
        units::StatusSet,
    },
    state::{
        endpoint::EndpointState,
        lifecycle::InFlight,
        limit::{Learner, LimitGuard},
        live::{DestinationState, Live, RouteState},
    },
    telemetry::{
        access_log::Record,
        decisions::{Decided, Step},
        reason::Reason,
    },
};

/// What becomes of a client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// It may carry another request.
    Reuse,
    /// It ends; the client is still sending.
    Linger,
    /// It ends.
    Close,
}

/// What a request is, once it is known where it goes.
#[derive(Clone, Copy)]
pub(super) struct Exchange<'a> {
    pub(super) worker: &'a Arc<Worker>,
    pub(super) live: &'a Arc<Live>,
    pub(super) route: &'a RouteState,
    pub(super) rule: &'a Rule,
    pub(super) destination: &'a DestinationState,
    pub(super) target: &'a Target,
    pub(super) request_id: &'a HeaderValue,
    pub(super) hasher: &'a RandomState,
    /// What is noted about it.
    pub(super) notes: &'a Notes,
    /// Who learns from what its attempts take.
    pub(super) learner: Option<&'a Learner>,
    is_closing: bool,
}

impl<'a> Exchange<'a> {
    /// A request on its way to a destination.
    pub(super) fn new(
        worker: &'a Arc<Worker>,
        live: &'a Arc<Live>,
        (route, rule): (&'a RouteState, &'a Rule),
        destination: &'a DestinationState,
        target: &'a Target,
        (request_id, notes): (&'a HeaderValue, &'a Notes),
    ) -> Self {
        Self { worker, live, route, rule, destination, target, request_id, hasher: &worker.state.limit_hasher, notes, learner: None, is_closing: false }
    }

    /// The same request on its way elsewhere.
    pub(super) fn towards(self, destination: &'a DestinationState) -> Self {
        Self { destination, learner: None, ..self }
    }

    /// The same request with somebody who learns from it.
    pub(super) fn learning<'b>(&'b self, learner: Option<&'b Learner>) -> Exchange<'b> {
        Exchange { learner, ..*self }
    }

    /// Counts a refusal that shadow mode lets pass.
    pub(super) fn would_refuse(&self, reason: Reason, by: &Arc<str>) {
        let numbers = notes::numbers(self, reason, by, None);
        self.notes.push(Step::Refused { reason, by: by.clone(), numbers, is_shadow: true });
        self.route.metrics.would_refuse(&self.worker.state.telemetry.metrics, reason);
    }

    /// Whether the backend is spoken to in HTTP/2.
    pub(super) fn is_to_http2(&self) -> bool {
        matches!(self.destination.backend.spec.protocol, Protocol::Http2 | Protocol::Grpc)
    }

    /// Whether the connection is to end after this request.
    pub(super) fn is_closing(&self) -> bool {
        self.is_closing || self.is_draining_inbound()
    }

    /// Whether this instance is leaving, as its callers see it. What the app asks of others is not its callers' business.
    pub(super) fn is_draining_inbound(&self) -> bool {
        self.route.spec.direction == Direction::Inbound && self.worker.state.lifecycle.is_draining()
    }
}

/// What is known of a request as it goes on, for its record.
pub(super) struct Progress {
    pub(super) began: Instant,
    /// When all of the request had come, once it was asked somewhere.
    pub(super) complete: Option<Instant>,
    pub(super) attempts: u32,
    pub(super) endpoint: Option<Arc<EndpointState>>,
    pub(super) status: u16,
    pub(super) reason: Option<Reason>,
    pub(super) grpc_status: Option<u8>,
    pub(super) limits: Limits,
    by: Arc<str>,
    received: u64,
    request_id: HeaderValue,
    /// The index of the route.
    route: Option<usize>,
    /// The index of the destination in the route.
    destination: Option<usize>,
    /// The index of the one that is asked instead.
    pub(super) aside: Option<usize>,
}

impl Progress {
    /// A request that has just come.
    pub(super) fn new(began: Instant, request_id: HeaderValue) -> Self {
        Self {
            began,
            complete: None,
            attempts: 0,
            endpoint: None,
            status: 0,
            reason: None,
            grpc_status: None,
            limits: Limits::default(),
            by: Arc::default(),
            received: 0,
            request_id,
            route: None,
            destination: None,
            aside: None,
        }
    }
}

/// Serves one request.
pub(super) async fn serve(worker: &Arc<Worker>, client: &mut Client, is_closing: bool) -> After {
    let began = clock::now();
    let live = worker.state.live.load_full();
    let is_inbound = client.listener.direction == Direction::Inbound;
    let is_draining = is_inbound && worker.state.lifecycle.is_draining();
    let in_flight = InFlight::enter(&worker.state, is_inbound, began);
    let request_id = headers::request_id(client);
    let notes = Notes::new(began);
    let mut progress = Progress::new(began, request_id);
    let after = match exchange(worker, &live, client, &mut progress, &notes, is_closing).await {
        Ok(after) => after,
        Err(rejection) => refuse(&live, client, &rejection, &mut progress, is_closing, is_draining).await,
    };
    let ended = clock::now();
    remember(worker, &live, client, &progress, notes, ended);
    record(worker, &live, client, &progress, ended);
    in_flight.end(ended);
    after
}

async fn exchange(worker: &Arc<Worker>, live: &Arc<Live>, client: &mut Client, progress: &mut Progress, notes: &Notes, is_closing: bool) -> Result<After, Rejection> {
    framing::check(client)?;
    if headers::goes_in_circles(client) {
        return Err(Rejection::of(Reason::LoopDetected));
    }
    let target = authority::of(client)?;
    let (route, rule) = routing::route(live, client, &target)?;
    progress.route = Some(rule.route);
    admission::allowed(route, client)?;
    if let ActionSpec::Redirect(redirect) = &route.spec.action {
        return Err(redirected(redirect, &target, rule, client.peer.is_secure));
    }
    let (index, destination) = routing::destination(route)?;
    progress.destination = Some(index);
    let request_id = progress.request_id.clone();
    let exchange = Exchange { is_closing, ..Exchange::new(worker, live, (route, rule), destination, &target, (&request_id, notes)) };

    let mut body = RequestBody::new(client, destination.policy.retry.max_buffered_body);
    let mut held = Held::default();
    let outcome = ask(&exchange, client, &mut body, progress, &mut held).await.inspect_err(|rejection| notes::refused(&exchange, rejection));
    let outcome = if degradation::is_wanted(&exchange) {
        Box::pin(degradation::instead(&exchange, client, &mut body, progress, &mut held, outcome)).await
    } else {
        outcome.map(|answered| (exchange, answered))
    };
    progress.received = body.received();
    let (exchange, answered) = outcome?;
    let after = relay::relay(&exchange, client, &mut body, answered, progress).await;
    progress.received = body.received();
    after
}

/// What a request holds until its answer is through.
#[derive(Default)]
pub(super) struct Held {
    /// A place in flight.
    pub(super) place: Option<LimitGuard>,
    fault: Option<OwnedSemaphorePermit>,
}

impl Held {
    /// Who wants to know what its attempts take.
    pub(super) fn learner(&self) -> Option<Learner> {
        self.place.as_ref().and_then(LimitGuard::learner)
    }
}

/// Lets a request in, and asks its backend.
async fn ask(exchange: &Exchange<'_>, client: &mut Client, body: &mut RequestBody, progress: &mut Progress, held: &mut Held) -> Result<Answered, Rejection> {
    admission::protect(exchange, client)?;
    admission::control(exchange, progress.began)?;
    rate_limits::admit(exchange, client, &mut progress.limits, progress.began).await?;
    held.place = admission::enter(exchange, client).await?;
    if let Some(fault) = &exchange.route.spec.fault {
        held.fault = Box::pin(faults::inject(exchange, fault, client)).await?;
    }
    let learner = held.learner();
    let exchange = &exchange.learning(learner.as_ref());
    let mut copies = mirroring::draw(exchange);
    copies.send(exchange, client, body, progress);
    let answered = attempt::until_answered(exchange, client, body, progress, progress.began).await;
    copies.send_or_skip(exchange, client, body, progress);
    if let Some(place) = &mut held.place {
        place.answer_begins();
    }
    answered
}

async fn refuse(live: &Live, client: &mut Client, rejection: &Rejection, progress: &mut Progress, is_closing: bool, is_draining: bool) -> After {
    progress.reason = Some(rejection.reason);
    progress.by = rejection.by.clone();
    if rejection.reason == Reason::ClientClosed {
        return After::Close;
    }
    let is_grpc = rejection.is_grpc(client);
    progress.status = if is_grpc { 200 } else { rejection.status() };
    progress.grpc_status = is_grpc.then(|| rejection.grpc_status());
    let is_unread = !client.is_body_done();
    if rejection.is_fatal || is_unread || is_closing || is_draining || matches!(rejection.reason, Reason::BadRequest) {
        client.close_after();
    }
    let limits = progress.route.map(|route| (&live.routes[route], &progress.limits));
    match rejection::answer(client, rejection, limits, is_draining).await {
        Err(_) => After::Close,
        Ok(()) if rejection.is_fatal || is_unread => After::Linger,
        Ok(()) => After::Reuse,
    }
}

fn redirected(redirect: &RedirectSpec, target: &Target, rule: &Rule, is_secure: bool) -> Rejection {
    let scheme = redirect.scheme.as_deref().unwrap_or(if is_secure { "https" } else { "http" });
    let host = redirect.host.as_deref().unwrap_or_else(|| target.host());
    let port = redirect.port.map(|port| format!(":{port}")).unwrap_or_default();
    let path = redirect.path.as_ref().map_or_else(|| target.path_and_query.clone(), |rewrite| routing::rewritten(target, rule, rewrite));
    let location = format!("{scheme}://{host}{port}{path}");
    Rejection { instead: Some(Box::new(Instead::Redirect { status: redirect.status, location })), ..Rejection::of(Reason::Redirect) }
}

/// Remembers why a request got what it got, if anything was decided about it.
fn remember(worker: &Worker, live: &Live, client: &Client, progress: &Progress, notes: Notes, ended: Instant) {
    let steps = notes.into_steps();
    if steps.is_empty() && progress.reason.is_none_or(|reason| reason == Reason::Redirect) {
        return;
    }
    let head = client.head();
    let route = progress.route.map(|index| &live.routes[index]);
    let telemetry = &worker.state.telemetry;
    telemetry.decisions.remember(Decided {
        at: telemetry.wall(),
        request_id: progress.request_id.to_str().unwrap_or_default().to_owned(),
        trace_id: client.text(&TRACEPARENT).and_then(|trace| trace.split('-').nth(1)).filter(|id| id.len() == 32).unwrap_or_default().to_owned(),
        method: head.method.as_str().to_owned(),
        host: beginning(host_of(client)),
        path: beginning(path_of(head)),
        route: route.map(|route| route.spec.name.to_string()).unwrap_or_default(),
        backend: destination_of(route, progress).map(|destination| destination.backend.spec.name.to_string()).unwrap_or_default(),
        endpoint: progress.endpoint.as_ref().map(|endpoint| endpoint.label.to_string()).unwrap_or_default(),
        status: progress.status,
        reason: progress.reason.map(|reason| rejection::token(reason, &progress.by)).unwrap_or_default(),
        attempts: progress.attempts,
        took: ended.saturating_duration_since(progress.began),
        steps,
    });
}

/// As much of a text as is remembered: strangers may send long ones.
fn beginning(text: &str) -> String {
    text.chars().take(256).collect()
}

/// Where a request went at last.
fn destination_of<'l>(route: Option<&'l RouteState>, progress: &Progress) -> Option<&'l DestinationState> {
    let route = route?;
    progress.aside.map(|index| &route.aside[index]).or_else(|| progress.destination.map(|index| &route.destinations[index]))
}

fn host_of(client: &Client) -> &str {
    client.text(&http::header::HOST).or_else(|| client.head().uri.authority().map(http::uri::Authority::as_str)).unwrap_or_default()
}

fn record(worker: &Worker, live: &Live, client: &Client, progress: &Progress, ended: Instant) {
    let telemetry = &worker.state.telemetry;
    let route = progress.route.map(|index| &live.routes[index]);
    let metrics = route.map_or(&live.unrouted, |route| &route.metrics);
    let duration = ended.saturating_duration_since(progress.began);
    metrics.finished(progress.status, duration.as_secs_f64());
    if let Some(status) = progress.grpc_status {
        metrics.called(&telemetry.metrics, status);
    }
    if let Some(reason) = progress.reason {
        metrics.refused(&telemetry.metrics, reason);
    }
    let log = &live.snapshot.access_log;
    if !telemetry.access_log.is_on() || !log.is_on || !is_sampled(log.sampling, &log.always, progress.status) {
        return;
    }
    let destination = destination_of(route, progress);
    let head = client.head();
    telemetry.access_log.write(&Record {
        timestamp: format_args!("{}", Rfc3339(clock::wall())),
        listener: &client.listener.name,
        route: route.map_or("", |route| &route.spec.name),
        backend: destination.map_or("", |destination| &destination.backend.spec.name),
        endpoint: progress.endpoint.as_ref().map_or("", |endpoint| &endpoint.label),
        client: Some(client.source()),
        method: head.method.as_str(),
        host: host_of(client),
        path: path_of(head),
        status: progress.status,
        grpc_status: progress.grpc_status,
        reason: progress.reason,
        detail: &progress.by,
        attempts: progress.attempts,
        received: progress.received,
        sent: client.sent(),
        duration,
        request_id: progress.request_id.to_str().unwrap_or_default(),
        traceparent: client.text(&TRACEPARENT).unwrap_or_default(),
    });
}

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

fn is_sampled(share: f64, always: &StatusSet, status: u16) -> bool {
    share >= 1.0 || always.contains(status) || fastrand::f64() < share
}

/// The path without its query, which may hold what nobody should write down.
fn path_of(head: &RequestHeader) -> &str {
    let path = head.raw_path().split(|byte| *byte == b'?').next().unwrap_or_default();
    std::str::from_utf8(path).unwrap_or_default()
}
