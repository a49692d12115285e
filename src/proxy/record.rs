//! What is known of a request while it goes on, and what is written down when it has ended: metrics, its line in the access log, and why it got what it got.

use std::{sync::Arc, time::Instant};

use http::{HeaderName, HeaderValue};
use pingora::http::RequestHeader;

use crate::{
    clock::{self, Rfc3339},
    policy::units::StatusSet,
    proxy::{
        client::Client, notes::DecisionTrace, rate_limits::RateLimitOutcome, rejection,
        worker::Worker,
    },
    state::{
        active_policy::{ActivePolicy, DestinationState, RouteState},
        topology::endpoint::EndpointState,
    },
    telemetry::{access_log::AccessLogEntry, decision_log::RequestDecisions, reason::Reason},
};

/// What is known of a request as it goes on, for its record.
pub(super) struct RequestRecord {
    pub(super) started_at: Instant,
    /// When all of the request had come, once it was asked somewhere.
    pub(super) request_completed_at: Option<Instant>,
    pub(super) attempts: u32,
    pub(super) endpoint: Option<Arc<EndpointState>>,
    pub(super) status: u16,
    pub(super) reason: Option<Reason>,
    pub(super) grpc_status: Option<u8>,
    pub(super) rate_limits: RateLimitOutcome,
    /// Who refused.
    pub(super) rejected_by: Arc<str>,
    pub(super) received_bytes: u64,
    pub(super) request_id: HeaderValue,
    /// The index of the route.
    pub(super) route_index: Option<usize>,
    /// The index of the destination in the route.
    pub(super) destination_index: Option<usize>,
    /// The index of the one that is asked instead.
    pub(super) auxiliary_index: Option<usize>,
}

impl RequestRecord {
    /// A request that has just come.
    pub(super) fn new(started_at: Instant, request_id: HeaderValue) -> Self {
        Self {
            started_at,
            request_completed_at: None,
            attempts: 0,
            endpoint: None,
            status: 0,
            reason: None,
            grpc_status: None,
            rate_limits: RateLimitOutcome::default(),
            rejected_by: Arc::default(),
            received_bytes: 0,
            request_id,
            route_index: None,
            destination_index: None,
            auxiliary_index: None,
        }
    }

    /// The endpoint that was asked last.
    pub(super) fn endpoint_label(&self) -> Arc<str> {
        self.endpoint
            .as_ref()
            .map(|endpoint| endpoint.label.clone())
            .unwrap_or_default()
    }
}

/// Remembers why a request got what it got, if anything was decided about it.
pub(super) fn record_decisions(
    worker: &Worker,
    active_policy: &ActivePolicy,
    client: &Client,
    record: &RequestRecord,
    decision_trace: DecisionTrace,
    ended_at: Instant,
) {
    let decisions = decision_trace.into_decisions();
    if decisions.is_empty()
        && record
            .reason
            .is_none_or(|reason| reason == Reason::Redirect)
    {
        return;
    }
    let head = client.head();
    let route = record.route_index.map(|index| &active_policy.routes[index]);
    let telemetry = &worker.state.telemetry;
    telemetry.decision_log.record(RequestDecisions {
        ended_at: telemetry.wall_time(),
        request_id: record.request_id.to_str().unwrap_or_default().to_owned(),
        trace_id: client
            .header_str(&TRACEPARENT)
            .and_then(|trace| trace.split('-').nth(1))
            .filter(|id| id.len() == 32)
            .unwrap_or_default()
            .to_owned(),
        method: head.method.as_str().to_owned(),
        host: truncate(request_host(client)),
        path: truncate(request_path(head)),
        route: route
            .map(|route| route.spec.name.to_string())
            .unwrap_or_default(),
        backend: final_destination(route, record)
            .map(|destination| destination.backend.spec.name.to_string())
            .unwrap_or_default(),
        endpoint: record.endpoint_label().to_string(),
        status: record.status,
        reason: record
            .reason
            .map(|reason| rejection::qualified_token(reason, &record.rejected_by))
            .unwrap_or_default(),
        attempts: record.attempts,
        duration: ended_at.saturating_duration_since(record.started_at),
        decisions,
    });
}

/// As much of a text as is remembered: strangers may send long ones.
fn truncate(text: &str) -> String {
    text.chars().take(256).collect()
}

/// Where a request went at last.
fn final_destination<'l>(
    route: Option<&'l RouteState>,
    record: &RequestRecord,
) -> Option<&'l DestinationState> {
    let route = route?;
    record
        .auxiliary_index
        .map(|index| &route.auxiliary_backends[index])
        .or_else(|| {
            record
                .destination_index
                .map(|index| &route.destinations[index])
        })
}

fn request_host(client: &Client) -> &str {
    client
        .header_str(&http::header::HOST)
        .or_else(|| {
            client
                .head()
                .uri
                .authority()
                .map(http::uri::Authority::as_str)
        })
        .unwrap_or_default()
}

/// Counts a request that has ended, and writes its line.
pub(super) fn record_completion(
    worker: &Worker,
    active_policy: &ActivePolicy,
    client: &Client,
    record: &RequestRecord,
    ended_at: Instant,
) {
    let telemetry = &worker.state.telemetry;
    let route = record.route_index.map(|index| &active_policy.routes[index]);
    let metrics = route.map_or(&active_policy.unrouted_metrics, |route| &route.metrics);
    let duration = ended_at.saturating_duration_since(record.started_at);
    metrics.record_request(record.status, duration.as_secs_f64());
    if let Some(status) = record.grpc_status {
        metrics.record_grpc_call(&telemetry.metrics, status);
    }
    if let Some(reason) = record.reason {
        metrics.record_refusal(&telemetry.metrics, reason);
    }
    let access_log_spec = &active_policy.snapshot.access_log;
    if !telemetry.access_log.is_enabled()
        || !access_log_spec.is_enabled
        || !is_sampled(
            access_log_spec.sampling_ratio,
            &access_log_spec.always_logged_statuses,
            record.status,
        )
    {
        return;
    }
    let destination = final_destination(route, record);
    let head = client.head();
    telemetry.access_log.write(&AccessLogEntry {
        timestamp: format_args!("{}", Rfc3339(clock::wall_time())),
        listener: &client.listener.name,
        route: route.map_or("", |route| &route.spec.name),
        backend: destination.map_or("", |destination| &destination.backend.spec.name),
        endpoint: record
            .endpoint
            .as_ref()
            .map_or("", |endpoint| &endpoint.label),
        client: Some(client.client_ip()),
        method: head.method.as_str(),
        host: request_host(client),
        path: request_path(head),
        status: record.status,
        grpc_status: record.grpc_status,
        reason: record.reason,
        detail: &record.rejected_by,
        attempts: record.attempts,
        bytes_received: record.received_bytes,
        bytes_sent: client.body_bytes_sent(),
        duration,
        request_id: record.request_id.to_str().unwrap_or_default(),
        traceparent: client.header_str(&TRACEPARENT).unwrap_or_default(),
    });
}

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

fn is_sampled(sampling_ratio: f64, always_logged_statuses: &StatusSet, status: u16) -> bool {
    sampling_ratio >= 1.0
        || always_logged_statuses.contains(status)
        || fastrand::f64() < sampling_ratio
}

/// The path without its query, which may hold what nobody should write down.
fn request_path(head: &RequestHeader) -> &str {
    let path = head
        .raw_path()
        .split(|byte| *byte == b'?')
        .next()
        .unwrap_or_default();
    std::str::from_utf8(path).unwrap_or_default()
}
