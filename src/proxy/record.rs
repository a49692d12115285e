//! What is known of a request while it goes on, and what is written down when it has ended: metrics, its line in the access log, and why it got what it got.

use std::{sync::Arc, time::Instant};

use http::{HeaderName, HeaderValue};
use pingora::http::RequestHeader;

use super::{client::Client, notes::Notes, rate_limits::Limits, rejection, worker::Worker};
use crate::{
    clock::{self, Rfc3339},
    policy::units::StatusSet,
    state::{
        endpoint::EndpointState,
        live::{DestinationState, Live, RouteState},
    },
    telemetry::{access_log::Record, decisions::Decided, reason::Reason},
};

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
    /// Who refused.
    pub(super) by: Arc<str>,
    pub(super) received: u64,
    pub(super) request_id: HeaderValue,
    /// The index of the route.
    pub(super) route: Option<usize>,
    /// The index of the destination in the route.
    pub(super) destination: Option<usize>,
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

    /// The endpoint that was asked last.
    pub(super) fn endpoint_label(&self) -> Arc<str> {
        self.endpoint
            .as_ref()
            .map(|endpoint| endpoint.label.clone())
            .unwrap_or_default()
    }
}

/// Remembers why a request got what it got, if anything was decided about it.
pub(super) fn remember(
    worker: &Worker,
    live: &Live,
    client: &Client,
    progress: &Progress,
    notes: Notes,
    ended: Instant,
) {
    let steps = notes.into_steps();
    if steps.is_empty()
        && progress
            .reason
            .is_none_or(|reason| reason == Reason::Redirect)
    {
        return;
    }
    let head = client.head();
    let route = progress.route.map(|index| &live.routes[index]);
    let telemetry = &worker.state.telemetry;
    telemetry.decisions.remember(Decided {
        at: telemetry.wall(),
        request_id: progress.request_id.to_str().unwrap_or_default().to_owned(),
        trace_id: client
            .text(&TRACEPARENT)
            .and_then(|trace| trace.split('-').nth(1))
            .filter(|id| id.len() == 32)
            .unwrap_or_default()
            .to_owned(),
        method: head.method.as_str().to_owned(),
        host: beginning(host_of(client)),
        path: beginning(path_of(head)),
        route: route
            .map(|route| route.spec.name.to_string())
            .unwrap_or_default(),
        backend: destination_of(route, progress)
            .map(|destination| destination.backend.spec.name.to_string())
            .unwrap_or_default(),
        endpoint: progress.endpoint_label().to_string(),
        status: progress.status,
        reason: progress
            .reason
            .map(|reason| rejection::token(reason, &progress.by))
            .unwrap_or_default(),
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
fn destination_of<'l>(
    route: Option<&'l RouteState>,
    progress: &Progress,
) -> Option<&'l DestinationState> {
    let route = route?;
    progress
        .aside
        .map(|index| &route.aside[index])
        .or_else(|| progress.destination.map(|index| &route.destinations[index]))
}

fn host_of(client: &Client) -> &str {
    client
        .text(&http::header::HOST)
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
pub(super) fn finished(
    worker: &Worker,
    live: &Live,
    client: &Client,
    progress: &Progress,
    ended: Instant,
) {
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
    if !telemetry.access_log.is_on()
        || !log.is_on
        || !is_sampled(log.sampling, &log.always, progress.status)
    {
        return;
    }
    let destination = destination_of(route, progress);
    let head = client.head();
    telemetry.access_log.write(&Record {
        timestamp: format_args!("{}", Rfc3339(clock::wall())),
        listener: &client.listener.name,
        route: route.map_or("", |route| &route.spec.name),
        backend: destination.map_or("", |destination| &destination.backend.spec.name),
        endpoint: progress
            .endpoint
            .as_ref()
            .map_or("", |endpoint| &endpoint.label),
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
    let path = head
        .raw_path()
        .split(|byte| *byte == b'?')
        .next()
        .unwrap_or_default();
    std::str::from_utf8(path).unwrap_or_default()
}
