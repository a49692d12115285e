//! Discards a response that is not relayed, so that its connection can be reused.

use std::time::Duration;

use crate::{
    clock,
    proxy::{
        attempt::outcome::UpstreamResponse,
        downstream::task::RequestTask,
        request::{context::RequestContext, grpc},
    },
};

/// Maximum bytes of a discarded response that are read to make its connection reusable.
const MAX_DISCARDED_BYTES: usize = 64 << 10;

/// Maximum time for which a discarded response is read.
const DISCARD_TIMEOUT: Duration = Duration::from_millis(25);

/// Discards a response that is not relayed. Its connection is reused if the end of the response
/// is near.
pub(crate) async fn discard_response(task: &RequestTask<'_>, response: UpstreamResponse) {
    discard(&task.context, task.body.is_done(), response).await;
}

/// Discards a response like [`discard_response`], for a request that has no client.
///
/// The response is read for at most 25 ms and about 64 KiB. If it is longer, its connection
/// closes.
pub(crate) async fn discard(
    context: &RequestContext<'_>,
    is_request_done: bool,
    response: UpstreamResponse,
) {
    let mut stream = response.stream;
    let read_to_end = async {
        let mut read_bytes = 0;
        while !stream.is_body_done() && read_bytes <= MAX_DISCARDED_BYTES {
            match stream.read().await {
                Ok(Some(chunk)) => read_bytes += chunk.len(),
                Ok(None) | Err(_) => break,
            }
        }
    };
    if clock::timeout(Some(DISCARD_TIMEOUT), read_to_end)
        .await
        .is_err()
    {
        return;
    }
    let now = clock::now();
    // The trailers contain the verdict of a gRPC call, even if the response is discarded.
    let status = stream.trailers().and_then(grpc::parse_status);
    if let (Some(reporter), Some(status)) = (response.pending_report, status) {
        reporter.report(grpc::verdict_from_status(status), None, now);
    }
    let is_complete = is_request_done && response.head.accepts_body;
    stream.release(context.worker, is_complete, now);
}
