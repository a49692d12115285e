//! Relays the response of a backend to the client.
//!
//! If the request is complete, the relay is a simple loop: it reads a chunk, writes it, and
//! flushes when no further chunk is ready. The consequences are:
//!
//! - A small response is sent in one packet.
//! - A large response never queues more than the flush threshold and one chunk.
//! - A slow response is forwarded as it arrives.
//!
//! A response that breaks off is also broken off towards the client and never completed. A gRPC
//! call ends with a status instead. The module does not decide on retries: once a head is
//! forwarded, none is possible.

use bytes::Bytes;

use crate::{
    clock,
    proxy::{
        admission::rate_limits,
        attempt::{
            outcome::{ResponseSummary, UpstreamResponse},
            reporter::{AttemptReporter, transport_failure_verdict},
        },
        downstream::{
            client::{ConnectionDisposition, DownstreamStream},
            task::RequestTask,
        },
        headers::response::build_response_head,
        request::{grpc, reason_table::properties, rejection::Rejection},
        response::{
            duplex,
            relayed::{RelayedResponse, ResponseObservers},
        },
        upstream::stream::Upstream,
    },
    state::topology::endpoint::EndpointGuard,
    telemetry::{backend_metrics::AttemptOutcome, reason::Reason},
};

/// Queued bytes at which output to a client is flushed even if further chunks are ready.
const FLUSH_THRESHOLD_BYTES: usize = 16 << 10;

/// Relays a response and returns whether the client's connection is reused, lingers or closes.
///
/// # Errors
/// A rejection if the head cannot be forwarded, or if the client closed before it.
pub(crate) async fn relay(
    task: &mut RequestTask<'_>,
    response: UpstreamResponse,
) -> Result<ConnectionDisposition, Rejection> {
    let UpstreamResponse {
        stream,
        head: mut summary,
        in_flight,
        pending_report,
    } = response;
    let mut relayed = forward_head(task, stream, &summary).await?;
    if let Some(chunk) = summary.first_chunk.take() {
        relayed.observers.observe_chunk(&chunk);
        task.client.write(chunk).map_err(Rejection::fatal)?;
    }
    let result = if summary.is_upgrade {
        task.body.switch_to_tunnel();
        // Boxing keeps the future of every other request small.
        Box::pin(duplex::relay_tunnel(task, &mut relayed)).await
    } else if task.body.is_done() && (!relayed.accepts_body || relayed.stream.is_flushed()) {
        relay_response_body(task, &mut relayed, in_flight).await
    } else {
        relayed.observers.capture = None;
        Box::pin(duplex::relay_both_directions(task, &mut relayed)).await
    };
    let trailer_status = relayed.stream.trailers().and_then(grpc::parse_status);
    if task.client.is_grpc() {
        task.record.grpc_status = summary.grpc_status.or(trailer_status);
    }
    if let Some(report) = pending_report {
        settle_report(*report, trailer_status, result.err());
    }
    if let Err(reason) = result {
        task.record.reason = Some(reason);
        abort_response(task, reason).await;
        return Ok(ConnectionDisposition::Close);
    }
    if let Some(capture) = relayed.observers.capture.take() {
        capture.store();
    }
    let is_request_complete = task.body.is_done() && relayed.accepts_body;
    let worker = task.context.worker;
    let stream = relayed.stream;
    stream.release(worker, is_request_complete, clock::now());
    Ok(match (summary.is_upgrade, task.body.is_done()) {
        (false, true) => ConnectionDisposition::Reuse,
        (true, _) | (false, false) => ConnectionDisposition::Linger,
    })
}

/// Forwards the response head and prepares the observers of the body.
///
/// # Errors
/// A rejection if the head is malformed, or the client has closed.
async fn forward_head(
    task: &mut RequestTask<'_>,
    stream: Upstream,
    summary: &ResponseSummary,
) -> Result<RelayedResponse, Rejection> {
    let context = task.context;
    let head = stream.head();
    let head = head.ok_or_else(|| Rejection::from_reason(Reason::UpstreamProtocolError))?;
    rate_limits::charge_response(&context, &mut task.record.rate_limits, &head.headers);
    let limits = Some(&task.record.rate_limits);
    let is_upgrade = summary.is_upgrade;
    let forwarded = build_response_head(&context, task.client, head, is_upgrade, limits);
    task.record.status = forwarded.status.as_u16();
    let observers = ResponseObservers::new(task, head, is_upgrade);
    if task.closes_connection() || !task.client.is_body_done() {
        task.client.close_after_response();
    }
    let written = task.client.write_head(&forwarded);
    written.map_err(Rejection::fatal)?;
    Ok(RelayedResponse::new(stream, summary, observers))
}

/// Relays the response body of a complete request.
///
/// # Errors
/// The reason for which the response must be aborted.
async fn relay_response_body(
    task: &mut RequestTask<'_>,
    relayed: &mut RelayedResponse,
    in_flight: EndpointGuard,
) -> Result<(), Reason> {
    let mut queued_bytes = 0;
    while !relayed.stream.is_body_done() {
        let ready = relayed.stream.read_ready().await;
        let chunk = match ready {
            // A busy backend always has another chunk ready, so the shutdown is checked here as
            // well.
            Some(Ok(Some(_))) if relayed.observers.is_shutdown_due(&task.context) => {
                return Err(Reason::Draining);
            }
            Some(chunk) => chunk?,
            None => {
                queued_bytes = 0;
                task.flush_client().await?;
                next_chunk(task, relayed).await?
            }
        };
        let Some(chunk) = chunk else { break };
        relayed.observers.observe_chunk(&chunk);
        queued_bytes += chunk.len();
        task.client.write(chunk)?;
        if queued_bytes >= FLUSH_THRESHOLD_BYTES {
            queued_bytes = 0;
            task.flush_client().await?;
        }
    }
    // The endpoint has finished. The time that the client still takes is not its load.
    drop(in_flight);
    let trailers = relayed.stream.trailers().cloned();
    task.client.finish(trailers)?;
    task.flush_client().await
}

/// Waits for the next chunk, for the close of the client, or for the shutdown of the stream.
async fn next_chunk(
    task: &mut RequestTask<'_>,
    relayed: &mut RelayedResponse,
) -> Result<Option<Bytes>, Reason> {
    let deadline = relayed.idle_deadline(task);
    let RelayedResponse {
        stream, observers, ..
    } = relayed;
    let next = async {
        tokio::select! {
            biased;
            chunk = stream.read() => chunk,
            reason = task.client.closed() => Err(reason),
            () = observers.wait_until_shutdown(&task.context) => Err(Reason::Draining),
        }
    };
    match clock::timeout_at(deadline, next).await {
        Ok(chunk) => chunk,
        Err(clock::Elapsed) => Err(relayed.timeout_reason()),
    }
}

/// Settles the report of a gRPC call, once its trailers have arrived or can no longer arrive.
fn settle_report(reporter: AttemptReporter, trailer_status: Option<u8>, failure: Option<Reason>) {
    let now = clock::now();
    match (trailer_status, failure) {
        (Some(status), _) => reporter.report(grpc::verdict_from_status(status), None, now),
        // A short deadline of the client is no evidence about the backend.
        (None, Some(Reason::ClientClosed | Reason::RequestTimeout | Reason::Draining)) => {
            reporter.report_cancelled(now);
        }
        (None, Some(Reason::StreamIdleTimeout)) => {
            let verdict = transport_failure_verdict(AttemptOutcome::Timeout);
            reporter.report(verdict, None, now);
        }
        (None, Some(_)) => {
            let verdict = transport_failure_verdict(AttemptOutcome::Reset);
            reporter.report(verdict, None, now);
        }
        // An end without a status counts as "unknown".
        (None, None) => {
            let verdict = grpc::verdict_from_status(grpc::status_from_http(0));
            reporter.report(verdict, None, now);
        }
    }
}

/// Aborts a response whose head is already forwarded.
///
/// A gRPC call ends with a status that names the failure. Any other response ends early:
/// between two messages if the instance drains, else with a reset of the stream or connection.
async fn abort_response(task: &mut RequestTask<'_>, reason: Reason) {
    if reason == Reason::ClientClosed {
        return;
    }
    if task.client.is_grpc() {
        let status = Rejection::from_reason(reason).grpc_status();
        task.record.grpc_status = Some(status);
        let trailers = grpc::status_trailers(status, properties(reason).title);
        // A client that has closed cannot receive the status.
        _ = task.client.finish(Some(trailers));
        _ = task.flush_client().await;
        return;
    }
    if reason == Reason::Draining {
        // The stream ends between two messages, as if the app had ended it there.
        _ = task.client.finish(None);
        _ = task.flush_client().await;
        return;
    }
    if reason == Reason::UpstreamReset {
        // The client receives what arrived before the reset.
        _ = task.flush_client().await;
    }
    match &mut task.client.stream {
        DownstreamStream::Http2(stream) => stream.reset(),
        // A normal close would make a body look complete if the close of the connection ends
        // the body.
        DownstreamStream::Http1(http1) => http1.handle().reset_on_close(),
    }
}
