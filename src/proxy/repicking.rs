//! Asking another endpoint because the one that was asked did not look at the request: it is leaving, or new.
//!
//! That is no retry. Nothing has happened yet, so nothing is waited for, nothing is drawn from a budget, and the policy's retries do
//! not matter; only the body must still be at hand. Each endpoint is asked once, so it ends.

use crate::{
    proxy::{
        attempt::{AttemptError, UpstreamResponse},
        classify::TransportError,
        record::RequestRecord,
        request_body::RequestBody,
        retrying::{self, AttemptHistory},
        serve::RequestContext,
    },
    telemetry::decision_log::Decision,
};

/// Goes on with how an attempt ended, or with nothing, if another endpoint is to be asked. So many had been tried before it.
pub(super) async fn reselect_if_unprocessed(
    context: &RequestContext<'_>,
    body: &RequestBody,
    history: &AttemptHistory,
    tried_before: usize,
    record: &RequestRecord,
    result: Result<UpstreamResponse, AttemptError>,
) -> Option<Result<UpstreamResponse, AttemptError>> {
    match result {
        Err(AttemptError::Unprocessed(response))
            if body.is_replayable() && has_untried_endpoint(context, history, tried_before) =>
        {
            record_reselection(context, record, response.status_text());
            retrying::discard_response(context, body.is_done(), *response).await;
            None
        }
        // There is no other, or it cannot be sent again: the client has to know.
        Err(AttemptError::Unprocessed(response)) => Some(Ok(*response)),
        Err(AttemptError::Transport(transport_error))
            if is_unprocessed(transport_error, record)
                && body.is_replayable()
                && has_untried_endpoint(context, history, tried_before) =>
        {
            record_reselection(context, record, transport_error.reason().token().to_owned());
            None
        }
        result => Some(result),
    }
}

/// Whether the endpoint that was picked was a fresh one, and there are others.
pub(super) fn has_untried_endpoint(
    context: &RequestContext<'_>,
    history: &AttemptHistory,
    tried_before: usize,
) -> bool {
    history.endpoint_count() > tried_before
        && history.endpoint_count() < context.destination.backend.endpoints.len()
}

/// Whether an endpoint that is leaving was not reached any more.
fn is_unprocessed(transport_error: TransportError, record: &RequestRecord) -> bool {
    transport_error.is_unprocessed()
        && record
            .endpoint
            .as_ref()
            .is_some_and(|endpoint| endpoint.draining_until().is_some())
}

/// Counts it, and notes it.
pub(super) fn record_reselection(
    context: &RequestContext<'_>,
    record: &RequestRecord,
    cause: String,
) {
    context.destination.backend.metrics.reselected.increment(1);
    context.decision_trace.record(Decision::Reselected {
        attempt: record.attempts,
        endpoint: record.endpoint_label(),
        cause,
    });
}
