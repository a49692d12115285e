//! Reselection: a request that an endpoint did not process is sent to another endpoint, because
//! the first one drains or warms up.
//!
//! A reselection is not a retry. The request had no effect, so there is no backoff, no
//! withdrawal from the retry budget, and no dependence on the retry policy. It only requires
//! that the body is still buffered. Each endpoint is selected once, so reselection ends.
//!
//! The module does not select the endpoint.

use crate::{
    proxy::{
        attempt::{
            discard,
            history::AttemptHistory,
            outcome::{AttemptError, UpstreamResponse},
        },
        downstream::task::RequestTask,
        request::{classify::TransportError, context::RequestContext, record::RequestRecord},
    },
    telemetry::decision::Decision,
};

/// Returns the result of an attempt, or `None` if another endpoint is to be selected instead.
///
/// `tried_before` is the number of endpoints that were selected before this attempt.
pub(crate) async fn reselect_if_unprocessed(
    task: &RequestTask<'_>,
    history: &AttemptHistory,
    tried_before: usize,
    result: Result<UpstreamResponse, AttemptError>,
) -> Option<Result<UpstreamResponse, AttemptError>> {
    let can_reselect =
        task.body.is_replayable() && has_untried_endpoint(&task.context, history, tried_before);
    match result {
        Err(AttemptError::Unprocessed(response)) if can_reselect => {
            record_reselection(task, response.status_text());
            discard::discard_response(task, *response).await;
            None
        }
        // No other endpoint is left, or the request cannot be sent again: the client receives
        // the response.
        Err(AttemptError::Unprocessed(response)) => Some(Ok(*response)),
        Err(AttemptError::Transport(error))
            if can_reselect && is_unreached_draining_endpoint(error, task.record) =>
        {
            record_reselection(task, error.reason().token().to_owned());
            None
        }
        result => Some(result),
    }
}

/// Returns whether this attempt's endpoint was not tried before, and untried endpoints are
/// left.
pub(crate) fn has_untried_endpoint(
    context: &RequestContext<'_>,
    history: &AttemptHistory,
    tried_before: usize,
) -> bool {
    history.endpoint_count() > tried_before
        && history.endpoint_count() < context.destination.backend.endpoints.len()
}

fn is_unreached_draining_endpoint(error: TransportError, record: &RequestRecord) -> bool {
    error.is_unprocessed()
        && record
            .endpoint
            .as_ref()
            .is_some_and(|endpoint| endpoint.draining_until().is_some())
}

fn record_reselection(task: &RequestTask<'_>, cause: String) {
    let context = &task.context;
    context.destination.backend.metrics.reselected.increment(1);
    context.decision_trace.record(Decision::Reselected {
        attempt: task.record.attempts,
        endpoint: task.record.endpoint_label(),
        cause,
    });
}
