//! Records a request that has ended: its metrics, its access log entry, and the decisions about
//! it.
//!
//! The module decides which requests are logged. It does not format or write log lines.

use std::{cell::RefCell, time::Instant};

use http::HeaderValue;

use crate::{
    clock::{self, TimestampFormatter},
    message::RequestHead,
    policy::units::StatusSet,
    proxy::{
        downstream::client::Client,
        request::{
            decision_trace::DecisionTrace, record::RequestRecord, rejection::qualified_token,
        },
        upstream::worker::Worker,
        wire::header_names::TRACEPARENT,
    },
    state::active_policy::{ActivePolicy, DestinationState, RouteState},
    telemetry::{access_log::AccessLogEntry, decision_log::RequestDecisions, reason::Reason},
};

/// Maximum length of a client's host or path in the decision log, in characters.
const MAX_RECORDED_CHARACTERS: usize = 256;

thread_local! {
    static TIMESTAMPS: RefCell<TimestampFormatter> = RefCell::default();
}

/// A request that has ended, with the data for its records.
pub(crate) struct CompletedRequest<'r> {
    pub(crate) worker: &'r Worker,
    pub(crate) active_policy: &'r ActivePolicy,
    pub(crate) client: &'r Client,
    pub(crate) record: &'r RequestRecord,
    pub(crate) request_id: &'r HeaderValue,
    pub(crate) ended_at: Instant,
}

impl CompletedRequest<'_> {
    /// Counts the request in the metrics, and writes its access log entry if it is sampled.
    pub(crate) fn write_access_record(&self) {
        let record = self.record;
        let telemetry = &self.worker.state.telemetry;
        let metrics = self
            .route()
            .map_or(&self.active_policy.unrouted_metrics, |route| &route.metrics);
        let duration = self.ended_at.saturating_duration_since(record.started_at);
        metrics.record_request(record.status, duration.as_secs_f64());
        if let Some(status) = record.grpc_status {
            metrics.record_grpc_call(&telemetry.metrics, status);
        }
        if let Some(reason) = record.reason {
            metrics.record_refusal(&telemetry.metrics, reason);
        }
        let spec = &self.active_policy.snapshot.access_log;
        let is_logged = telemetry.access_log.is_enabled()
            && spec.is_enabled
            && is_sampled(
                spec.sampling_ratio,
                &spec.always_logged_statuses,
                record.status,
            );
        if is_logged {
            self.write_access_log_entry();
        }
    }

    fn write_access_log_entry(&self) {
        let (client, record) = (self.client, self.record);
        let (request, destination) = (client.request_view(), self.destination());
        let backend = destination.map(|destination| &destination.backend.spec.name);
        let endpoint = record.endpoint.as_ref().map(|endpoint| &endpoint.label);
        let access_log = &self.worker.state.telemetry.access_log;
        let starts_batch = TIMESTAMPS.with_borrow_mut(|timestamps| {
            access_log.write(&AccessLogEntry {
                timestamp: timestamps.format(clock::wall_time()),
                listener: &client.listener.name,
                route: self.route().map_or("", |route| &route.spec.name),
                backend: backend.map_or("", |name| name),
                endpoint: endpoint.map_or("", |label| label),
                client: Some(request.client_ip()),
                method: request.head.method.as_str(),
                host: request_host(client),
                path: request_path(request.head),
                status: record.status,
                grpc_status: record.grpc_status,
                reason: record.reason,
                detail: &record.rejected_by,
                attempts: record.attempts,
                bytes_received: record.received_bytes,
                bytes_sent: client.body_bytes_sent(),
                duration: self.ended_at.saturating_duration_since(record.started_at),
                request_id: self.request_id.to_str().unwrap_or_default(),
                traceparent: request.header_str(TRACEPARENT).unwrap_or_default(),
            })
        });
        if starts_batch {
            self.worker.schedule_access_log_flush();
        }
    }

    /// Stores the decisions about the request in the decision log.
    ///
    /// A request without decisions is stored only if it was rejected; a redirect does not
    /// count.
    pub(crate) fn store_decisions(&self, decision_trace: DecisionTrace) {
        let record = self.record;
        let decisions = decision_trace.into_decisions();
        let is_unremarkable = record
            .reason
            .is_none_or(|reason| reason == Reason::Redirect);
        if decisions.is_empty() && is_unremarkable {
            return;
        }
        let request = self.client.request_view();
        let trace_id = request
            .header_str(TRACEPARENT)
            .and_then(|trace| trace.split('-').nth(1))
            .filter(|id| id.len() == 32);
        let (route, destination) = (self.route(), self.destination());
        let telemetry = &self.worker.state.telemetry;
        telemetry.decision_log.record(RequestDecisions {
            ended_at: telemetry.wall_time(),
            request_id: self.request_id.to_str().unwrap_or_default().to_owned(),
            trace_id: trace_id.unwrap_or_default().to_owned(),
            method: request.head.method.as_str().to_owned(),
            host: truncate(request_host(self.client)),
            path: truncate(request_path(request.head)),
            route: route.map_or_else(String::new, |route| route.spec.name.to_string()),
            backend: destination.map_or_else(String::new, |destination| {
                destination.backend.spec.name.to_string()
            }),
            endpoint: record.endpoint_label().to_string(),
            status: record.status,
            reason: record.reason.map_or_else(String::new, |reason| {
                qualified_token(reason, &record.rejected_by)
            }),
            attempts: record.attempts,
            duration: self.ended_at.saturating_duration_since(record.started_at),
            decisions,
        });
    }

    fn route(&self) -> Option<&RouteState> {
        let index = self.record.route_index?;
        Some(&self.active_policy.routes[index])
    }

    /// Returns the destination of the last attempts: a fallback backend, or the destination of
    /// the route.
    fn destination(&self) -> Option<&DestinationState> {
        let (route, record) = (self.route()?, self.record);
        let auxiliary = record.auxiliary_index;
        auxiliary
            .map(|index| &route.auxiliary_backends[index])
            .or_else(|| {
                let index = record.destination_index?;
                Some(&route.destinations[index])
            })
    }
}

/// Truncates a text from a client, which can be long.
fn truncate(text: &str) -> String {
    text.chars().take(MAX_RECORDED_CHARACTERS).collect()
}

fn request_host(client: &Client) -> &str {
    client
        .header_str(http::header::HOST)
        .or_else(|| client.head().authority.as_deref())
        .unwrap_or_default()
}

fn is_sampled(sampling_ratio: f64, always_logged_statuses: &StatusSet, status: u16) -> bool {
    sampling_ratio >= 1.0
        || always_logged_statuses.contains(status)
        || fastrand::f64() < sampling_ratio
}

/// Returns the path without its query, which can contain secrets.
fn request_path(head: &RequestHead) -> &str {
    let path = head
        .target
        .split(|byte| *byte == b'?')
        .next()
        .unwrap_or_default();
    std::str::from_utf8(path).unwrap_or_default()
}
