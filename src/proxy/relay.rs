//! Passing an answer on.
//!
//! Without a request body in flight this is a simple loop: read a piece, write it, and push when there is no more at hand. So a
//! small answer leaves in one packet, a large one never queues more than a piece, and a slow one is passed on as it comes. An
//! answer that breaks off is broken off towards the client too, never completed; a call of gRPC is told by a status of its own.

use std::{
    future::Future,
    pin::pin,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::header;
use pingora::http::ResponseHeader;

use crate::{
    clock,
    proxy::{
        attempt::{UpstreamResponse, fatal_rejection},
        client::{Client, DownstreamStream},
        duplex, grpc, headers,
        parting::{self, StreamShutdown},
        rate_limits,
        record::RequestRecord,
        rejection::{self, Rejection},
        request_body::RequestBody,
        serve::{ConnectionDisposition, RequestContext},
        settlement::transport_failure_verdict,
        stale,
    },
    telemetry::{metrics::AttemptOutcome, reason::Reason},
};

/// What is queued towards a client before it is pushed, although more is at hand.
const FLUSH_THRESHOLD_BYTES: usize = 16 << 10;

/// Passes an answer on; what becomes of the client's connection.
pub(super) async fn relay(
    context: &RequestContext<'_>,
    client: &mut Client,
    body: &mut RequestBody,
    mut response: UpstreamResponse,
    record: &mut RequestRecord,
) -> Result<ConnectionDisposition, Rejection> {
    let response_head = response
        .upstream
        .head()
        .ok_or_else(|| Rejection::from_reason(Reason::UpstreamProtocolError))?;
    rate_limits::charge_response(context, &mut record.rate_limits, &response_head.headers);
    let head = headers::build_response_head(
        context,
        client,
        response_head,
        response.is_upgrade,
        Some(&record.rate_limits),
    )
    .map_err(|_| Rejection::from_reason(Reason::UpstreamProtocolError))?;
    record.status = head.status.as_u16();
    response.stream_shutdown =
        StreamShutdown::from_response(context, client, response_head, response.is_upgrade);
    response.capture = if response.is_upgrade {
        None
    } else {
        stale::begin_capture(context, client, response_head)
    };
    let ends_with_connection = !has_explicit_body_end(&head) && !response.is_upgrade;
    if context.closes_connection() || ends_with_connection || !client.is_body_done() {
        client.close_after_response();
    }
    client.write_head(head).await.map_err(fatal_rejection)?;
    if let Some(first_chunk) = response.first_chunk.take() {
        observe_chunk(&mut response, &first_chunk);
        client.write(first_chunk).await.map_err(fatal_rejection)?;
    }
    let relayed = if response.is_upgrade {
        body.switch_to_tunnel();
        duplex::relay_tunnel(context, client, body, &mut response).await
    } else if body.is_done() && (!response.accepts_body || response.upstream.is_flushed()) {
        relay_body(context, client, &mut response).await
    } else {
        response.capture = None;
        duplex::relay_both_directions(context, client, body, &mut response).await
    };
    report_grpc_outcome(client, &mut response, relayed.err(), record);
    if let Some(capture) = response.capture.take().filter(|_| relayed.is_ok()) {
        capture.store();
    }
    if let Err(reason) = relayed {
        record.reason = Some(reason);
        abort_response(context, client, reason, record).await;
        return Ok(ConnectionDisposition::Close);
    }
    let is_request_complete = body.is_done() && response.accepts_body;
    let is_upgrade = response.is_upgrade;
    response
        .upstream
        .release(context.worker, is_request_complete, clock::now())
        .await;
    Ok(match (is_upgrade, body.is_done()) {
        (false, true) => ConnectionDisposition::Reuse,
        (true, _) | (false, false) => ConnectionDisposition::Linger,
    })
}

/// Judges a call of gRPC, now that its trailers are here, or will never be.
fn report_grpc_outcome(
    client: &Client,
    response: &mut UpstreamResponse,
    failure_reason: Option<Reason>,
    record: &mut RequestRecord,
) {
    let trailer_status = response.upstream.trailers().and_then(grpc::parse_status);
    if client.is_grpc() {
        record.grpc_status = response.grpc_status.or(trailer_status);
    }
    let Some(reporter) = response.pending_reporter.take() else {
        return;
    };
    let now = clock::now();
    match (trailer_status, failure_reason) {
        (Some(status), _) => reporter.report(grpc::verdict_from_status(status), None, now),
        // How little time a client gives says nothing about the backend.
        (None, Some(Reason::ClientClosed | Reason::RequestTimeout | Reason::Draining)) => {
            reporter.report_cancelled(now)
        }
        (None, Some(Reason::StreamIdleTimeout)) => reporter.report(
            transport_failure_verdict(AttemptOutcome::Timeout),
            None,
            now,
        ),
        (None, Some(_)) => {
            reporter.report(transport_failure_verdict(AttemptOutcome::Reset), None, now)
        }
        // An end without a status is none that gRPC knows: it is taken as "unknown".
        (None, None) => reporter.report(
            grpc::verdict_from_status(grpc::status_from_http(0)),
            None,
            now,
        ),
    }
}

/// The head is on its way; all that can be done is to let out what came, and to stop short of the end, or to say how it ended.
async fn abort_response(
    context: &RequestContext<'_>,
    client: &mut Client,
    reason: Reason,
    record: &mut RequestRecord,
) {
    let idle_timeout = context.destination.policy.timeouts.stream_idle;
    if reason == Reason::ClientClosed {
        return;
    }
    if client.is_grpc() {
        let rejection = Rejection::from_reason(reason);
        let status = rejection.grpc_status();
        record.grpc_status = Some(status);
        // A client that is gone needs no more telling.
        _ = client
            .finish(Some(grpc::status_trailers(
                status,
                rejection::reason_title(reason),
            )))
            .await;
        _ = flush(client, idle_timeout).await;
        return;
    }
    if reason == Reason::Draining {
        // It ends between two of its parts, and looks as if it had ended there by itself.
        _ = client.finish(None).await;
        _ = flush(client, idle_timeout).await;
        return;
    }
    if reason == Reason::UpstreamReset {
        _ = flush(client, idle_timeout).await;
    }
    match &mut client.stream {
        DownstreamStream::Http2(context) => context.reset(),
        // Where the end of the connection is the end of the body, a proper end would be taken for it.
        DownstreamStream::Http1(http1) => http1.handle.reset_on_close(),
    }
}

/// Whether a client can tell where the body ends without the connection's end.
fn has_explicit_body_end(head: &ResponseHeader) -> bool {
    let has_no_body = head.status == 204 || head.status == 304;
    has_no_body
        || head.headers.contains_key(header::CONTENT_LENGTH)
        || head.headers.contains_key(header::TRANSFER_ENCODING)
}

async fn relay_body(
    exchange: &RequestContext<'_>,
    client: &mut Client,
    response: &mut UpstreamResponse,
) -> Result<(), Reason> {
    let idle_timeout = exchange.destination.policy.timeouts.stream_idle;
    let mut queued_bytes = 0;
    while !response.upstream.is_body_done() {
        let chunk = {
            let mut read = pin!(response.upstream.read());
            let ready_chunk =
                std::future::poll_fn(|context| Poll::Ready(read.as_mut().poll(context))).await;
            match ready_chunk {
                Poll::Ready(chunk) => match chunk? {
                    // There is more, and there always would be.
                    Some(_) if parting::is_due(response.stream_shutdown.as_ref(), exchange) => {
                        return Err(Reason::Draining);
                    }
                    chunk => chunk,
                },
                Poll::Pending => {
                    queued_bytes = 0;
                    flush(client, idle_timeout).await?;
                    let next_chunk = async {
                        tokio::select! {
                            biased;
                            chunk = &mut read => chunk,
                            reason = client.closed() => Err(reason),
                            () = parting::wait_until_due(&mut response.stream_shutdown, exchange) => Err(Reason::Draining),
                        }
                    };
                    match clock::timeout_at(
                        idle_deadline(idle_timeout, response.call_deadline),
                        next_chunk,
                    )
                    .await
                    {
                        Ok(chunk) => chunk?,
                        Err(clock::Elapsed) => return Err(timeout_reason(response.call_deadline)),
                    }
                }
            }
        };
        let Some(chunk) = chunk else { break };
        observe_chunk(response, &chunk);
        queued_bytes += chunk.len();
        client.write(chunk).await?;
        if queued_bytes >= FLUSH_THRESHOLD_BYTES {
            queued_bytes = 0;
            flush(client, idle_timeout).await?;
        }
    }
    // The endpoint has done its part; how long the client takes is not its load.
    drop(response.in_flight_guard.take());
    client.finish(response.upstream.trailers().cloned()).await?;
    flush(client, idle_timeout).await
}

/// Keeps a piece of what is to be kept, as long as it is not too long, and takes note of where it ends.
fn observe_chunk(response: &mut UpstreamResponse, chunk: &Bytes) {
    if let Some(stream_shutdown) = &mut response.stream_shutdown {
        stream_shutdown.observe_chunk(chunk);
    }
    let capture = &mut response.capture;
    if capture
        .as_mut()
        .is_some_and(|capture| !capture.append(chunk))
    {
        *capture = None;
    }
}

/// Until when a silence is borne.
pub(super) fn idle_deadline(
    idle_timeout: Option<Duration>,
    call_deadline: Option<Instant>,
) -> Option<Instant> {
    [
        idle_timeout.map(|idle_timeout| clock::now() + idle_timeout),
        call_deadline,
    ]
    .into_iter()
    .flatten()
    .min()
}

/// Why it is borne no longer.
pub(super) fn timeout_reason(call_deadline: Option<Instant>) -> Reason {
    if call_deadline.is_some_and(|call_deadline| clock::now() >= call_deadline) {
        Reason::RequestTimeout
    } else {
        Reason::StreamIdleTimeout
    }
}

async fn flush(client: &mut Client, idle_timeout: Option<Duration>) -> Result<(), Reason> {
    clock::timeout(idle_timeout, client.flush())
        .await
        .map_err(|_| Reason::StreamIdleTimeout)?
}
