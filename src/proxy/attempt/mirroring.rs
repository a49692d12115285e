//! Mirroring: copies of requests are sent to other backends.
//!
//! No request waits for a copy, and only the metrics show its outcome. The module does not
//! compare the responses of mirrors with those of the backend.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::HeaderValue;
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    clock,
    policy::matching::RouteRule,
    proxy::{
        admission,
        attempt::{
            discard,
            history::AttemptSeries,
            outcome::UpstreamResponse,
            request_source::{BufferedRequest, RequestSource},
            single::{Attempt, ResponseHandover},
        },
        downstream::task::RequestTask,
        request::{
            authority::RequestTarget, context::RequestContext, deadline::Deadline,
            decision_trace::DecisionTrace, record::RequestRecord,
        },
        upstream::worker::Worker,
    },
    resilience::shed::PriorityClass,
    state::{
        active_policy::{ActivePolicy, DestinationState, MirrorState},
        policies::concurrency_limit::{AcquireOutcome, ConcurrencyPermit},
    },
    telemetry::backend_metrics::MirrorOutcome,
};

/// Maximum duration of a copy, whatever its policy allows. It limits how long a copy occupies
/// its permit.
const MAX_MIRROR_DURATION: Duration = Duration::from_secs(60);

/// Indices in the route of sampled mirrors whose copies are not sent yet.
#[derive(Debug, Default)]
pub(crate) struct PendingMirrors(Vec<usize>);

/// Samples the mirrors that receive a copy of a request, each with its configured share.
pub(crate) fn sample_mirrors(context: &RequestContext<'_>) -> PendingMirrors {
    let mirrors = context.route.mirrors.iter().enumerate();
    PendingMirrors(
        mirrors
            .filter(|(_, mirror)| fastrand::f64() < mirror.share.value())
            .map(|(index, _)| index)
            .collect(),
    )
}

impl PendingMirrors {
    /// Sends the copies if the client has sent the whole request; otherwise they stay pending.
    ///
    /// A copy is skipped and counted if its mirror has no free permit or the request cannot be
    /// copied.
    pub(crate) fn send(&mut self, task: &RequestTask<'_>) {
        if self.0.is_empty() || !task.body.is_done() {
            return;
        }
        let context = &task.context;
        let mut request: Option<Arc<BufferedRequest>> = None;
        for index in std::mem::take(&mut self.0) {
            let mirror = &context.route.mirrors[index];
            // The request is copied only once a mirror has permits for it.
            let permits = MirrorPermits::try_acquire(context, mirror, task.record.started_at);
            if request.is_none()
                && permits.is_some()
                && task.request().requested_upgrade().is_none()
            {
                request = BufferedRequest::from_client(task.client, &task.body).map(Arc::new);
            }
            match (&request, permits) {
                (Some(request), Some(permits)) => {
                    let copy = MirroredRequest::new(task, mirror, request.clone());
                    tokio::spawn(copy.run(permits));
                }
                _ => record_skipped(context, mirror),
            }
        }
    }

    /// Sends the copies, or counts them as skipped if the request is incomplete.
    ///
    /// The attempts have ended by now, so the copies do not wait for the rest of the request.
    pub(crate) fn send_or_skip(&mut self, task: &RequestTask<'_>) {
        self.send(task);
        for index in self.0.drain(..) {
            record_skipped(&task.context, &task.context.route.mirrors[index]);
        }
    }
}

fn record_skipped(context: &RequestContext<'_>, mirror: &MirrorState) {
    let destination = &context.route.auxiliary_backends[mirror.auxiliary_index];
    let metrics = &destination.backend.metrics;
    metrics.record_mirror(MirrorOutcome::Skipped);
}

/// Permits that a copy holds until it ends.
struct MirrorPermits {
    /// Counts the copy against the maximum number of concurrent copies of its mirror.
    _copy: OwnedSemaphorePermit,
    /// Counts the copy against the concurrency limit of the mirror's backend.
    concurrency: Option<ConcurrencyPermit>,
}

impl MirrorPermits {
    /// Acquires the permits without waiting, or returns `None` if the copy must be skipped.
    fn try_acquire(
        context: &RequestContext<'_>,
        mirror: &MirrorState,
        now: Instant,
    ) -> Option<Self> {
        let destination = &context.route.auxiliary_backends[mirror.auxiliary_index];
        let copy = mirror.permits.clone().try_acquire_owned().ok()?;
        if !admission::admits_copy(destination, now) {
            return None;
        }
        let limit = destination.policy_states.concurrency_limit.as_ref();
        let concurrency = match limit.map(|limit| limit.try_acquire(PriorityClass::Critical)) {
            None => None,
            Some(AcquireOutcome::Admitted(permit) | AcquireOutcome::WouldReject(permit)) => {
                Some(permit)
            }
            Some(AcquireOutcome::Queued(_) | AcquireOutcome::Rejected | AcquireOutcome::Shed) => {
                return None;
            }
        };
        Some(Self {
            _copy: copy,
            concurrency,
        })
    }
}

/// One copy with all data that it needs, so that it can outlive the request.
struct MirroredRequest {
    worker: Arc<Worker>,
    active_policy: Arc<ActivePolicy>,
    rule: RouteRule,
    request_target: RequestTarget,
    request_id: HeaderValue,
    /// The index of the backend among the auxiliary backends of the route.
    auxiliary_index: usize,
    request: Arc<BufferedRequest>,
    started_at: Instant,
}

impl MirroredRequest {
    fn new(task: &RequestTask<'_>, mirror: &MirrorState, request: Arc<BufferedRequest>) -> Self {
        let context = &task.context;
        Self {
            worker: context.worker.clone(),
            active_policy: context.active_policy.clone(),
            rule: context.rule.clone(),
            request_target: context.request_target.clone(),
            request_id: context.request_id.clone(),
            auxiliary_index: mirror.auxiliary_index,
            request,
            started_at: task.record.started_at,
        }
    }

    /// Sends the copy on this worker, and counts its outcome.
    async fn run(self, mut permits: MirrorPermits) {
        let route = &self.active_policy.routes[self.rule.route];
        let destination = &route.auxiliary_backends[self.auxiliary_index];
        let decision_trace = DecisionTrace::new(self.started_at);
        let context = RequestContext {
            worker: &self.worker,
            active_policy: &self.active_policy,
            route,
            rule: &self.rule,
            destination,
            request_target: &self.request_target,
            request_id: &self.request_id,
            decision_trace: &decision_trace,
        };
        let sent = self.send(context, destination, &permits);
        let response = clock::timeout(Some(MAX_MIRROR_DURATION), sent).await;
        let response = response.ok().flatten();
        if let Some(permit) = &mut permits.concurrency {
            permit.record_response_start();
        }
        let outcome = if response.is_some() {
            MirrorOutcome::Sent
        } else {
            MirrorOutcome::Failed
        };
        destination.backend.metrics.record_mirror(outcome);
        if let Some(response) = response {
            discard::discard(&context, true, response).await;
        }
    }

    async fn send(
        &self,
        context: RequestContext<'_>,
        destination: &DestinationState,
        permits: &MirrorPermits,
    ) -> Option<UpstreamResponse> {
        let view = self.request.request_view();
        let now = clock::now();
        let mut deadline = Deadline::new(destination.policy.timeouts.request, &view, now);
        deadline.start(now, now);
        let permit = permits.concurrency.as_ref();
        let sampler = permit.and_then(ConcurrencyPermit::sampler);
        let mut series = AttemptSeries::new(deadline, sampler);
        let mut record = RequestRecord::new(self.started_at);
        let attempt = Attempt::begin(context, &view, &mut series, &mut record).ok()?;
        let mut source = RequestSource::Replay(&self.request);
        let result = attempt.run(&mut source, &mut series.deadline, ResponseHandover::AtHead);
        result.await.ok()
    }
}
