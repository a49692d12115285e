//! The life of a request, from top to bottom.

use std::sync::Arc;

use ahash::RandomState;
use http::HeaderValue;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    admission,
    attempt::{self, Answered},
    authority::{self, Target},
    client::Client,
    degradation, faults, framing, headers, mirroring,
    notes::{self, Notes},
    rate_limits,
    record::{self, Progress},
    rejection::{self, Instead, Rejection, SOON},
    relay,
    request_body::RequestBody,
    routing,
    signs::{self, Signs},
    worker::Worker,
};
use crate::{
    clock,
    policy::{
        document::Direction,
        matching::Rule,
        snapshot::{ActionSpec, Protocol, RedirectSpec},
    },
    state::{
        departure::InFlight,
        limit::{Learner, LimitGuard},
        live::{DestinationState, Live, RouteState},
    },
    telemetry::{decisions::Step, reason::Reason},
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
        Self {
            worker,
            live,
            route,
            rule,
            destination,
            target,
            request_id,
            hasher: &worker.state.limit_hasher,
            notes,
            learner: None,
            is_closing: false,
        }
    }

    /// The same request on its way elsewhere.
    pub(super) fn towards(self, destination: &'a DestinationState) -> Self {
        Self {
            destination,
            learner: None,
            ..self
        }
    }

    /// The same request with somebody who learns from it.
    pub(super) fn learning<'b>(&'b self, learner: Option<&'b Learner>) -> Exchange<'b> {
        Exchange { learner, ..*self }
    }

    /// Counts a refusal that shadow mode lets pass.
    pub(super) fn would_refuse(&self, reason: Reason, by: &Arc<str>) {
        let numbers = notes::numbers(self, reason, by, None);
        self.notes.push(Step::Refused {
            reason,
            by: by.clone(),
            numbers,
            is_shadow: true,
        });
        self.route
            .metrics
            .would_refuse(&self.worker.state.telemetry.metrics, reason);
    }

    /// Whether the backend is spoken to in HTTP/2.
    pub(super) fn is_to_http2(&self) -> bool {
        matches!(
            self.destination.backend.spec.protocol,
            Protocol::Http2 | Protocol::Grpc
        )
    }

    /// Whether the connection is to end after this request.
    pub(super) fn is_closing(&self) -> bool {
        self.is_closing || has_to_close(self.worker, self.route.spec.direction)
    }
}

/// Serves one request.
pub(super) async fn serve(worker: &Arc<Worker>, client: &mut Client, is_closing: bool) -> After {
    let began = clock::now();
    let live = worker.state.live.load_full();
    let in_flight = InFlight::enter(&worker.state, client.listener.direction, began);
    let request_id = headers::request_id(client);
    let notes = Notes::new(began);
    let mut progress = Progress::new(began, request_id);
    let after = match exchange(worker, &live, client, &mut progress, &notes, is_closing).await {
        Ok(after) => after,
        Err(rejection) => {
            refuse(worker, &live, client, &rejection, &mut progress, is_closing).await
        }
    };
    let ended = clock::now();
    record::remember(worker, &live, client, &progress, notes, ended);
    record::finished(worker, &live, client, &progress, ended);
    drop(in_flight);
    after
}

async fn exchange(
    worker: &Arc<Worker>,
    live: &Arc<Live>,
    client: &mut Client,
    progress: &mut Progress,
    notes: &Notes,
    is_closing: bool,
) -> Result<After, Rejection> {
    framing::check(client)?;
    if client.listener.direction == Direction::Inbound && worker.state.departure.refuses() {
        return Err(Rejection::of(Reason::Draining).after(SOON));
    }
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
    let exchange = Exchange {
        is_closing,
        ..Exchange::new(
            worker,
            live,
            (route, rule),
            destination,
            &target,
            (&request_id, notes),
        )
    };

    let mut body = RequestBody::new(client, destination.policy.retry.max_buffered_body);
    let mut held = Held::default();
    let outcome = ask(&exchange, client, &mut body, progress, &mut held)
        .await
        .inspect_err(|rejection| notes::refused(&exchange, rejection));
    let outcome = if degradation::is_wanted(&exchange) {
        Box::pin(degradation::instead(
            &exchange, client, &mut body, progress, &mut held, outcome,
        ))
        .await
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

/// Lets a request in, and asks its backend.
async fn ask(
    exchange: &Exchange<'_>,
    client: &mut Client,
    body: &mut RequestBody,
    progress: &mut Progress,
    held: &mut Held,
) -> Result<Answered, Rejection> {
    admission::warm(exchange, client, progress.began)?;
    admission::protect(exchange, client)?;
    admission::control(exchange, progress.began)?;
    rate_limits::admit(exchange, client, &mut progress.limits, progress.began).await?;
    held.place = admission::enter(exchange, client).await?;
    if let Some(fault) = &exchange.route.spec.fault {
        held.fault = Box::pin(faults::inject(exchange, fault, client)).await?;
    }
    let mut copies = mirroring::draw(exchange);
    copies.send(exchange, client, body, progress.began);
    let answered = attempt::in_place(
        exchange,
        client,
        body,
        progress,
        &mut held.place,
        progress.began,
    )
    .await;
    copies.send_or_skip(exchange, client, body, progress.began);
    answered
}

async fn refuse(
    worker: &Worker,
    live: &Live,
    client: &mut Client,
    rejection: &Rejection,
    progress: &mut Progress,
    is_closing: bool,
) -> After {
    progress.reason = Some(rejection.reason);
    progress.by = rejection.by.clone();
    if rejection.reason == Reason::ClientClosed {
        return After::Close;
    }
    let is_grpc = rejection.is_grpc(client);
    progress.status = if is_grpc { 200 } else { rejection.status() };
    progress.grpc_status = is_grpc.then(|| rejection.grpc_status());
    let is_unread = !client.is_body_done();
    let direction = client.listener.direction;
    if rejection.is_fatal
        || is_unread
        || is_closing
        || has_to_close(worker, direction)
        || matches!(rejection.reason, Reason::BadRequest)
    {
        client.close_after();
    }
    let limits = progress
        .route
        .map(|route| (&live.routes[route], &progress.limits));
    let signs = if direction == Direction::Inbound {
        signs::of(worker, live)
    } else {
        Signs::default()
    };
    match rejection::answer(client, rejection, limits, signs).await {
        Err(_) => After::Close,
        Ok(()) if rejection.is_fatal || is_unread => After::Linger,
        Ok(()) => After::Reuse,
    }
}

/// Whether connections are to end because this instance is leaving, as its callers see it. What the app asks of others is not its callers' business.
fn has_to_close(worker: &Worker, direction: Direction) -> bool {
    direction == Direction::Inbound && worker.state.departure.is_draining()
}

fn redirected(redirect: &RedirectSpec, target: &Target, rule: &Rule, is_secure: bool) -> Rejection {
    let scheme = redirect
        .scheme
        .as_deref()
        .unwrap_or(if is_secure { "https" } else { "http" });
    let host = redirect.host.as_deref().unwrap_or_else(|| target.host());
    let port = redirect
        .port
        .map(|port| format!(":{port}"))
        .unwrap_or_default();
    let path = redirect.path.as_ref().map_or_else(
        || target.path_and_query.clone(),
        |rewrite| routing::rewritten(target, rule, rewrite),
    );
    let location = format!("{scheme}://{host}{port}{path}");
    Rejection {
        instead: Some(Box::new(Instead::Redirect {
            status: redirect.status,
            location,
        })),
        ..Rejection::of(Reason::Redirect)
    }
}
