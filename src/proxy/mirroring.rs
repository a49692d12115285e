//! Copies of requests for other backends. Nobody waits for them, and what becomes of them is nobody's business but the metrics'.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::OwnedSemaphorePermit;

use super::{
    asker::{Asker, Kept},
    attempt::Attempt,
    client::Client,
    deadline::Deadline,
    headers,
    notes::Notes,
    record::Progress,
    request_body::RequestBody,
    retrying::{self, Tries},
    serve::Exchange,
};
use crate::{
    clock,
    resilience::shed::Class,
    state::{
        admission::Verdict,
        limit::{Entry, LimitGuard},
        live::{DestinationState, MirrorState},
    },
    telemetry::metrics::Mirrored,
};

/// However long the mirror's policy lets it take, a copy ends then: nobody waits for it, and its place is wanted.
const LONGEST: Duration = Duration::from_secs(60);

/// The copies that a request is to have and has not yet.
#[derive(Debug, Default)]
pub(super) struct Copies(Vec<usize>);

/// Draws who gets a copy.
pub(super) fn draw(exchange: &Exchange<'_>) -> Copies {
    let mirrors = exchange.route.mirrors.iter().enumerate();
    Copies(
        mirrors
            .filter(|(_, mirror)| fastrand::f64() < mirror.share.value())
            .map(|(index, _)| index)
            .collect(),
    )
}

impl Copies {
    /// Sends the copies, if all of the request has come.
    pub(super) fn send(
        &mut self,
        exchange: &Exchange<'_>,
        client: &Client,
        body: &RequestBody,
        began: Instant,
    ) {
        if self.0.is_empty() || !body.is_done() {
            return;
        }
        let mut kept: Option<Arc<Kept>> = None;
        for mirror in std::mem::take(&mut self.0)
            .into_iter()
            .map(|index| &exchange.route.mirrors[index])
        {
            // Nothing is copied for a mirror that has no room.
            let held = room(&exchange.route.aside[mirror.aside], mirror, began);
            let is_plain = || headers::wanted_upgrade(&client.asked()).is_none();
            kept = kept.or_else(|| {
                held.as_ref()
                    .filter(|_| is_plain())
                    .and_then(|_| Kept::of(client, body))
                    .map(Arc::new)
            });
            match (&kept, held) {
                (Some(kept), Some(held)) => spawn(exchange, mirror, kept.clone(), held, began),
                _ => exchange.route.aside[mirror.aside]
                    .backend
                    .metrics
                    .mirrored(Mirrored::Skipped),
            }
        }
    }

    /// The last chance to send them: the answer has begun.
    pub(super) fn send_or_skip(
        &mut self,
        exchange: &Exchange<'_>,
        client: &Client,
        body: &RequestBody,
        began: Instant,
    ) {
        self.send(exchange, client, body, began);
        for mirror in self.0.drain(..).map(|index| &exchange.route.mirrors[index]) {
            exchange.route.aside[mirror.aside]
                .backend
                .metrics
                .mirrored(Mirrored::Skipped);
        }
    }
}

/// Room for a copy: among the copies, and under the backend's own limits. It never waits for it.
fn room(
    destination: &DestinationState,
    mirror: &MirrorState,
    now: Instant,
) -> Option<(OwnedSemaphorePermit, Option<LimitGuard>)> {
    let place = mirror.places.clone().try_acquire_owned().ok()?;
    if destination
        .admission
        .as_ref()
        .is_some_and(|admission| admission.ask(fastrand::f64(), now) == Verdict::Refused)
    {
        return None;
    }
    let limited = match destination
        .limit
        .as_ref()
        .map(|limit| limit.enter(Class::Critical))
    {
        None => None,
        Some(Entry::Admitted(limited) | Entry::WouldRefuse(limited)) => Some(limited),
        Some(Entry::Queued(_) | Entry::Refused | Entry::Shed) => return None,
    };
    Some((place, limited))
}

/// One copy, on this worker, with everything that it needs of its own.
fn spawn(
    exchange: &Exchange<'_>,
    mirror: &MirrorState,
    kept: Arc<Kept>,
    held: (OwnedSemaphorePermit, Option<LimitGuard>),
    began: Instant,
) {
    let (worker, live) = (exchange.worker.clone(), exchange.live.clone());
    let (rule, target, request_id) = (
        exchange.rule.clone(),
        exchange.target.clone(),
        exchange.request_id.clone(),
    );
    let aside = mirror.aside;
    tokio::spawn(async move {
        let route = &live.routes[rule.route];
        let destination = &route.aside[aside];
        let notes = Notes::new(began);
        let (place, mut limited) = held;
        let learner = limited.as_ref().and_then(LimitGuard::learner);
        let exchange = Exchange::new(
            &worker,
            &live,
            (route, &rule),
            destination,
            &target,
            (&request_id, &notes),
        );
        let exchange = exchange.learning(learner.as_ref());
        let mut progress = Progress::new(began, request_id.clone());
        let now = clock::now();
        let mut deadline = Deadline::new(destination.policy.timeouts.request, &kept.asked(), now);
        deadline.begin(now, now);
        let begun = deadline;
        let made = async {
            let attempt = Attempt::begin(
                &exchange,
                &kept.asked(),
                &mut Tries::default(),
                &begun,
                &mut progress,
            )
            .ok()?;
            attempt
                .make(&mut Asker::Kept(&kept), &mut deadline)
                .await
                .ok()
        };
        let made = clock::within(Some(LONGEST), made).await.ok().flatten();
        if let Some(limited) = &mut limited {
            limited.answer_begins();
        }
        destination.backend.metrics.mirrored(if made.is_some() {
            Mirrored::Sent
        } else {
            Mirrored::Failed
        });
        if let Some(answered) = made {
            retrying::discard(&exchange, true, answered).await;
        }
        drop((place, limited));
    });
}
