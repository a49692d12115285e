//! Copies of requests for other backends. Nobody waits for them, and what becomes of them is nobody's business but the metrics'.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::{
    asker::{Asker, Kept},
    attempt::Attempt,
    client::Client,
    deadline::Deadline,
    headers,
    notes::Notes,
    request_body::RequestBody,
    retrying::{self, Tries},
    serve::{Exchange, Progress},
};
use crate::{clock, state::live::MirrorState, telemetry::metrics::Mirrored};

/// The copies that a request is to have and has not yet.
#[derive(Debug, Default)]
pub(super) struct Copies(Vec<usize>);

/// Draws who gets a copy.
pub(super) fn draw(exchange: &Exchange<'_>) -> Copies {
    let mirrors = exchange.route.mirrors.iter().enumerate();
    Copies(mirrors.filter(|(_, mirror)| mirror.share.value() >= 1.0 || fastrand::f64() < mirror.share.value()).map(|(index, _)| index).collect())
}

impl Copies {
    /// Sends the copies, if all of the request has come.
    pub(super) fn send(&mut self, exchange: &Exchange<'_>, client: &Client, body: &RequestBody, progress: &Progress) {
        if self.0.is_empty() || !body.is_done() {
            return;
        }
        let kept = Kept::of(client, body).filter(|kept| headers::wanted_upgrade(&kept.asked()).is_none()).map(Arc::new);
        for mirror in std::mem::take(&mut self.0).into_iter().map(|index| &exchange.route.mirrors[index]) {
            let metrics = &exchange.route.aside[mirror.aside].backend.metrics;
            match (&kept, mirror.places.clone().try_acquire_owned()) {
                (Some(kept), Ok(place)) => spawn(exchange, mirror, kept.clone(), place, progress),
                _ => metrics.mirrored(Mirrored::Skipped),
            }
        }
    }

    /// The last chance to send them: the answer has begun.
    pub(super) fn send_or_skip(&mut self, exchange: &Exchange<'_>, client: &Client, body: &RequestBody, progress: &Progress) {
        self.send(exchange, client, body, progress);
        for mirror in self.0.drain(..).map(|index| &exchange.route.mirrors[index]) {
            exchange.route.aside[mirror.aside].backend.metrics.mirrored(Mirrored::Skipped);
        }
    }
}

/// One copy, on this worker, with everything that it needs of its own.
fn spawn(exchange: &Exchange<'_>, mirror: &MirrorState, kept: Arc<Kept>, place: OwnedSemaphorePermit, progress: &Progress) {
    let (worker, live) = (exchange.worker.clone(), exchange.live.clone());
    let (rule, target, request_id) = (exchange.rule.clone(), exchange.target.clone(), exchange.request_id.clone());
    let (aside, began) = (mirror.aside, progress.began);
    tokio::spawn(async move {
        let route = &live.routes[rule.route];
        let destination = &route.aside[aside];
        let notes = Notes::new(began);
        let exchange = Exchange::new(&worker, &live, (route, &rule), destination, &target, (&request_id, &notes));
        let mut progress = Progress::new(began, request_id.clone());
        let now = clock::now();
        let mut deadline = Deadline::new(destination.policy.timeouts.request, &kept.asked(), now);
        deadline.begin(now);
        let made = match Attempt::begin(&exchange, &kept.asked(), &mut Tries::default(), &mut progress) {
            Ok(attempt) => attempt.make(&mut Asker::Kept(&kept), &mut deadline).await.ok(),
            Err(_) => None,
        };
        destination.backend.metrics.mirrored(if made.is_some() { Mirrored::Sent } else { Mirrored::Failed });
        if let Some(answered) = made {
            retrying::discard(&exchange, true, answered).await;
        }
        drop(place);
    });
}
