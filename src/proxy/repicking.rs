//! Asking another endpoint because the one that was asked did not look at the request: it is leaving, or new.
//!
//! That is no retry. Nothing has happened yet, so nothing is waited for, nothing is drawn from a budget, and the policy's retries do
//! not matter; only the body must still be at hand. Each endpoint is asked once, so it ends.

use super::{
    attempt::{Answered, Failed},
    classify::Broken,
    record::Progress,
    request_body::RequestBody,
    retrying::{self, Tries},
    serve::Exchange,
};
use crate::telemetry::decisions::Step;

/// Goes on with how an attempt ended, or with nothing, if another endpoint is to be asked. So many had been tried before it.
pub(super) async fn consider(
    exchange: &Exchange<'_>,
    body: &RequestBody,
    tries: &Tries,
    tried: usize,
    progress: &Progress,
    made: Result<Answered, Failed>,
) -> Option<Result<Answered, Failed>> {
    match made {
        Err(Failed::Unprocessed(answered))
            if body.is_replayable() && has_another(exchange, tries, tried) =>
        {
            note(exchange, progress, answered.status_in_words());
            retrying::discard(exchange, body.is_done(), *answered).await;
            None
        }
        // There is no other, or it cannot be sent again: the client has to know.
        Err(Failed::Unprocessed(answered)) => Some(Ok(*answered)),
        Err(Failed::Broken(broken))
            if is_unprocessed(broken, progress)
                && body.is_replayable()
                && has_another(exchange, tries, tried) =>
        {
            note(exchange, progress, broken.reason().token().to_owned());
            None
        }
        made => Some(made),
    }
}

/// Whether the endpoint that was picked was a fresh one, and there are others.
pub(super) fn has_another(exchange: &Exchange<'_>, tries: &Tries, tried: usize) -> bool {
    tries.count() > tried && tries.count() < exchange.destination.backend.endpoints.len()
}

/// Whether an endpoint that is leaving was not reached any more.
fn is_unprocessed(broken: Broken, progress: &Progress) -> bool {
    broken.is_unprocessed()
        && progress
            .endpoint
            .as_ref()
            .is_some_and(|endpoint| endpoint.alone_until().is_some())
}

/// Counts it, and notes it.
pub(super) fn note(exchange: &Exchange<'_>, progress: &Progress, how: String) {
    exchange.destination.backend.metrics.repicked.increment(1);
    exchange.notes.push(Step::Repicked {
        attempt: progress.attempts,
        endpoint: progress.endpoint_label(),
        how,
    });
}
