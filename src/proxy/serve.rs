//! The life of a request, from its arrival on a client connection to its access log entry.
//!
//! The stages run in this order:
//!
//! - checks that need no route: framing, drain stage and proxy loops,
//! - routing, the allow list of the route, and its redirect,
//! - admission,
//! - attempts at a backend, and copies to mirrors,
//! - a stale or fallback response, if the policy configures one and the backend fails,
//! - relay of the response, or a rejection,
//! - decision trace, metrics and access log.
//!
//! This module decides only the order. It does not know how a stage reaches its decision.

use std::sync::Arc;

use http::HeaderValue;

use crate::{
    clock,
    policy::{
        document::Direction,
        matching::RouteRule,
        snapshot::{RedirectSpec, RouteActionSpec},
    },
    proxy::{
        admission::{self, allow_list},
        attempt::{mirroring, outcome::UpstreamResponse, retry_loop},
        downstream::{
            client::{Client, ConnectionDisposition},
            framing,
            request_body::RequestBody,
            task::{RequestPermits, RequestTask},
        },
        headers::lifecycle::{self, LifecycleHeaders},
        request::{
            authority::{self, RequestTarget},
            context::RequestContext,
            decision_trace::DecisionTrace,
            evidence,
            record::RequestRecord,
            rejection::{DEFAULT_RETRY_AFTER, Rejection, ResponseOverride},
            routing,
        },
        response::{access_record::CompletedRequest, fallback, relay, write_rejection},
        upstream::worker::Worker,
    },
    state::{active_policy::ActivePolicy, instance::drain::InFlightGuard},
    telemetry::reason::Reason,
};

/// Request data that is available before routing.
struct UnroutedRequest<'r> {
    worker: &'r Arc<Worker>,
    /// Policy in force when the request arrived. The request keeps it across policy reloads.
    active_policy: &'r Arc<ActivePolicy>,
    request_id: &'r HeaderValue,
    decision_trace: &'r DecisionTrace,
    /// Whether the listener closes its connections after the response in progress.
    is_listener_closing: bool,
}

/// Serves one request and returns whether the client's connection is reused, lingers or closes.
pub(crate) async fn serve(
    worker: &Arc<Worker>,
    client: &mut Client,
    is_listener_closing: bool,
) -> ConnectionDisposition {
    let started_at = clock::now();
    let active_policy = worker.state.active_policy.load_full();
    let in_flight =
        InFlightGuard::start(&worker.state.drain, client.listener.direction, started_at);
    let request_id = client.request_view().request_id();
    let decision_trace = DecisionTrace::new(started_at);
    let mut record = RequestRecord::new(started_at);
    let unrouted = UnroutedRequest {
        worker,
        active_policy: &active_policy,
        request_id: &request_id,
        decision_trace: &decision_trace,
        is_listener_closing,
    };
    let disposition = match unrouted.proxy(client, &mut record).await {
        Ok(disposition) => disposition,
        Err(rejection) => unrouted.reject(client, &rejection, &mut record).await,
    };
    let completed = CompletedRequest {
        worker,
        active_policy: &active_policy,
        client,
        record: &record,
        request_id: &request_id,
        ended_at: clock::now(),
    };
    completed.store_decisions(decision_trace);
    completed.write_access_record();
    drop(in_flight);
    disposition
}

impl UnroutedRequest<'_> {
    /// Routes a request, sends it, and relays the response.
    ///
    /// # Errors
    /// The rejection that the client receives instead of a response.
    async fn proxy(
        &self,
        client: &mut Client,
        record: &mut RequestRecord,
    ) -> Result<ConnectionDisposition, Rejection> {
        self.check(client)?;
        let request = client.request_view();
        let request_target = authority::parse(&request)?;
        let (route, rule) = routing::match_route(self.active_policy, &request, &request_target)?;
        record.route_index = Some(rule.route);
        allow_list::check_identity(route, &request)?;
        if let RouteActionSpec::Redirect(redirect) = &route.spec.action {
            let is_secure = client.identity.is_secure;
            return Err(redirect_rejection(
                redirect,
                &request_target,
                rule,
                is_secure,
            ));
        }
        let (index, destination) = routing::select_destination(route)?;
        record.destination_index = Some(index);
        let max_buffered_bytes = destination.policy.retry.max_buffered_body_bytes;
        let mut task = RequestTask {
            context: RequestContext {
                worker: self.worker,
                active_policy: self.active_policy,
                route,
                rule,
                destination,
                request_target: &request_target,
                request_id: self.request_id,
                decision_trace: self.decision_trace,
            },
            body: RequestBody::new(client, max_buffered_bytes),
            client,
            record,
            permits: RequestPermits::default(),
            is_listener_closing: self.is_listener_closing,
        };
        let mut outcome = admit_and_send(&mut task).await;
        if let Err(rejection) = &outcome {
            evidence::record_rejection(&task.context, rejection);
        }
        if fallback::is_configured(&task.context) {
            // Boxing keeps the future of every other request small.
            outcome = Box::pin(fallback::degrade(&mut task, outcome)).await;
        }
        let disposition = match outcome {
            Ok(response) => relay::relay(&mut task, response).await,
            Err(rejection) => Err(rejection),
        };
        task.record.received_bytes = task.body.received_bytes();
        disposition
    }

    /// Runs the checks that need no route.
    ///
    /// # Errors
    /// A rejection of malformed framing, of an inbound request to a drained instance, or of a
    /// proxy loop.
    fn check(&self, client: &Client) -> Result<(), Rejection> {
        framing::check(client)?;
        let is_inbound = client.listener.direction == Direction::Inbound;
        if is_inbound && self.worker.state.drain.rejects_requests() {
            let rejection = Rejection::from_reason(Reason::Draining);
            return Err(rejection.with_retry_after(DEFAULT_RETRY_AFTER));
        }
        if client.request_view().is_looping() {
            return Err(Rejection::from_reason(Reason::LoopDetected));
        }
        Ok(())
    }

    /// Writes a rejection to the client, and records its reason and status.
    ///
    /// A client that has closed its connection receives nothing.
    async fn reject(
        &self,
        client: &mut Client,
        rejection: &Rejection,
        record: &mut RequestRecord,
    ) -> ConnectionDisposition {
        record.reason = Some(rejection.reason);
        record.rejected_by = rejection.rejected_by.clone();
        if rejection.reason == Reason::ClientClosed {
            return ConnectionDisposition::Close;
        }
        let is_grpc = rejection.is_grpc(client.is_grpc());
        record.status = if is_grpc { 200 } else { rejection.status() };
        record.grpc_status = is_grpc.then(|| rejection.grpc_status());
        let has_unread_body = !client.is_body_done();
        let is_inbound = client.listener.direction == Direction::Inbound;
        let is_draining = is_inbound && self.worker.state.drain.is_draining();
        if rejection.is_fatal
            || has_unread_body
            || self.is_listener_closing
            || is_draining
            || rejection.reason == Reason::BadRequest
        {
            client.close_after_response();
        }
        let routes = &self.active_policy.routes;
        let rate_limits = record
            .route_index
            .map(|index| (&routes[index], &record.rate_limits));
        let lifecycle_headers = if is_inbound {
            lifecycle::current_headers(self.worker, self.active_policy)
        } else {
            LifecycleHeaders::default()
        };
        let sent =
            write_rejection::send_rejection(client, rejection, rate_limits, lifecycle_headers);
        match sent.await {
            Err(_) => ConnectionDisposition::Close,
            Ok(()) if rejection.is_fatal || has_unread_body => ConnectionDisposition::Linger,
            Ok(()) => ConnectionDisposition::Reuse,
        }
    }
}

/// Admits a request, sends it, and sends the copies for its mirrors.
async fn admit_and_send(task: &mut RequestTask<'_>) -> Result<UpstreamResponse, Rejection> {
    admission::admit(task).await?;
    let mut mirrors = mirroring::sample_mirrors(&task.context);
    mirrors.send(task);
    let result = retry_loop::send(task, task.record.started_at).await;
    mirrors.send_or_skip(task);
    result
}

/// Returns the redirect of a route as a rejection with a response override.
fn redirect_rejection(
    redirect: &RedirectSpec,
    request_target: &RequestTarget,
    rule: &RouteRule,
    is_secure: bool,
) -> Rejection {
    let scheme = redirect
        .scheme
        .as_deref()
        .unwrap_or(if is_secure { "https" } else { "http" });
    let host = redirect
        .host
        .as_deref()
        .unwrap_or_else(|| request_target.host());
    let port = redirect
        .port
        .map(|port| format!(":{port}"))
        .unwrap_or_default();
    let path = redirect.path.as_ref().map_or_else(
        || request_target.path_and_query.clone(),
        |rewrite| routing::rewrite_path(request_target, rule, rewrite),
    );
    let location = format!("{scheme}://{host}{port}{path}");
    Rejection::from_reason(Reason::Redirect).with_override(ResponseOverride::Redirect {
        status: redirect.status,
        location,
    })
}
