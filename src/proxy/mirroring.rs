//! Copies of requests for other backends. Nobody waits for them, and what becomes of them is nobody's business but the metrics'.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::OwnedSemaphorePermit;

use crate::{
    clock,
    proxy::{
        asker::{BufferedRequest, RequestSource},
        attempt::Attempt,
        client::Client,
        deadline::Deadline,
        headers,
        notes::DecisionTrace,
        record::RequestRecord,
        request_body::RequestBody,
        retrying::{self, AttemptHistory},
        serve::RequestContext,
    },
    resilience::shed::PriorityClass,
    state::{
        active_policy::{DestinationState, MirrorState},
        policies::{
            admission_control::AdmissionDecision,
            concurrency_limit::{AcquireOutcome, ConcurrencyPermit},
        },
    },
    telemetry::metrics::MirrorOutcome,
};

/// However long the mirror's policy lets it take, a copy ends then: nobody waits for it, and its place is wanted.
const MAX_MIRROR_DURATION: Duration = Duration::from_secs(60);

/// The copies that a request is to have and has not yet.
#[derive(Debug, Default)]
pub(super) struct PendingMirrors(Vec<usize>);

/// Draws who gets a copy.
pub(super) fn sample_mirrors(context: &RequestContext<'_>) -> PendingMirrors {
    let mirrors = context.route.mirrors.iter().enumerate();
    PendingMirrors(
        mirrors
            .filter(|(_, mirror)| fastrand::f64() < mirror.share.value())
            .map(|(index, _)| index)
            .collect(),
    )
}

impl PendingMirrors {
    /// Sends the copies, if all of the request has come.
    pub(super) fn send(
        &mut self,
        context: &RequestContext<'_>,
        client: &Client,
        body: &RequestBody,
        started_at: Instant,
    ) {
        if self.0.is_empty() || !body.is_done() {
            return;
        }
        let mut buffered_request: Option<Arc<BufferedRequest>> = None;
        for mirror in std::mem::take(&mut self.0)
            .into_iter()
            .map(|index| &context.route.mirrors[index])
        {
            // Nothing is copied for a mirror that has no room.
            let permits = try_acquire_permits(
                &context.route.auxiliary_backends[mirror.auxiliary_index],
                mirror,
                started_at,
            );
            let is_not_upgrade = || headers::requested_upgrade(&client.request_view()).is_none();
            buffered_request = buffered_request.or_else(|| {
                permits
                    .as_ref()
                    .filter(|_| is_not_upgrade())
                    .and_then(|_| BufferedRequest::from_client(client, body))
                    .map(Arc::new)
            });
            match (&buffered_request, permits) {
                (Some(buffered_request), Some(permits)) => spawn_mirror(
                    context,
                    mirror,
                    buffered_request.clone(),
                    permits,
                    started_at,
                ),
                _ => context.route.auxiliary_backends[mirror.auxiliary_index]
                    .backend
                    .metrics
                    .record_mirror(MirrorOutcome::Skipped),
            }
        }
    }

    /// The last chance to send them: the answer has begun.
    pub(super) fn send_or_skip(
        &mut self,
        context: &RequestContext<'_>,
        client: &Client,
        body: &RequestBody,
        started_at: Instant,
    ) {
        self.send(context, client, body, started_at);
        for mirror in self.0.drain(..).map(|index| &context.route.mirrors[index]) {
            context.route.auxiliary_backends[mirror.auxiliary_index]
                .backend
                .metrics
                .record_mirror(MirrorOutcome::Skipped);
        }
    }
}

/// Room for a copy: among the copies, and under the backend's own limits. It never waits for it.
fn try_acquire_permits(
    destination: &DestinationState,
    mirror: &MirrorState,
    now: Instant,
) -> Option<(OwnedSemaphorePermit, Option<ConcurrencyPermit>)> {
    let mirror_permit = mirror.permits.clone().try_acquire_owned().ok()?;
    if destination
        .admission_control
        .as_ref()
        .is_some_and(|admission| {
            admission.decide(fastrand::f64(), now) == AdmissionDecision::Rejected
        })
    {
        return None;
    }
    let limit_guard = match destination
        .concurrency_limit
        .as_ref()
        .map(|limit| limit.try_acquire(PriorityClass::Critical))
    {
        None => None,
        Some(AcquireOutcome::Admitted(limit_guard) | AcquireOutcome::WouldReject(limit_guard)) => {
            Some(limit_guard)
        }
        Some(AcquireOutcome::Queued(_) | AcquireOutcome::Rejected | AcquireOutcome::Shed) => {
            return None;
        }
    };
    Some((mirror_permit, limit_guard))
}

/// One copy, on this worker, with everything that it needs of its own.
fn spawn_mirror(
    context: &RequestContext<'_>,
    mirror: &MirrorState,
    buffered_request: Arc<BufferedRequest>,
    permits: (OwnedSemaphorePermit, Option<ConcurrencyPermit>),
    started_at: Instant,
) {
    let (worker, active_policy) = (context.worker.clone(), context.active_policy.clone());
    let (rule, target, request_id) = (
        context.rule.clone(),
        context.request_target.clone(),
        context.request_id.clone(),
    );
    let auxiliary_index = mirror.auxiliary_index;
    tokio::spawn(async move {
        let route = &active_policy.routes[rule.route];
        let destination = &route.auxiliary_backends[auxiliary_index];
        let decision_trace = DecisionTrace::new(started_at);
        let (mirror_permit, mut limit_guard) = permits;
        let limit_sampler = limit_guard.as_ref().and_then(ConcurrencyPermit::sampler);
        let context = RequestContext::new(
            &worker,
            &active_policy,
            (route, &rule),
            destination,
            &target,
            (&request_id, &decision_trace),
        );
        let context = context.with_limit_sampler(limit_sampler.as_ref());
        let mut record = RequestRecord::new(started_at, request_id.clone());
        let now = clock::now();
        let mut deadline = Deadline::new(
            destination.policy.timeouts.request,
            &buffered_request.request_view(),
            now,
        );
        deadline.start(now, now);
        let attempt_deadline = deadline;
        let result = async {
            let attempt = Attempt::begin(
                &context,
                &buffered_request.request_view(),
                &mut AttemptHistory::default(),
                &attempt_deadline,
                &mut record,
            )
            .ok()?;
            attempt
                .run(&mut RequestSource::Replay(&buffered_request), &mut deadline)
                .await
                .ok()
        };
        let result = clock::timeout(Some(MAX_MIRROR_DURATION), result)
            .await
            .ok()
            .flatten();
        if let Some(limit_guard) = &mut limit_guard {
            limit_guard.record_response_start();
        }
        destination
            .backend
            .metrics
            .record_mirror(if result.is_some() {
                MirrorOutcome::Sent
            } else {
                MirrorOutcome::Failed
            });
        if let Some(response) = result {
            retrying::discard_response(&context, true, response).await;
        }
        drop((mirror_permit, limit_guard));
    });
}
