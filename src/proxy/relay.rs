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

use super::{
    attempt::{Answered, gone},
    client::{Client, ClientStream},
    duplex, grpc, headers,
    parting::{self, Parting},
    rate_limits,
    record::Progress,
    rejection::{self, Rejection},
    request_body::RequestBody,
    serve::{After, Exchange},
    settlement::cut_off,
    stale,
};
use crate::{
    clock,
    telemetry::{metrics::AttemptOutcome, reason::Reason},
};

/// What is queued towards a client before it is pushed, although more is at hand.
const PIECE: usize = 16 << 10;

/// Passes an answer on; what becomes of the client's connection.
pub(super) async fn relay(
    exchange: &Exchange<'_>,
    client: &mut Client,
    body: &mut RequestBody,
    mut answered: Answered,
    progress: &mut Progress,
) -> Result<After, Rejection> {
    let answer = answered
        .upstream
        .head()
        .ok_or_else(|| Rejection::of(Reason::UpstreamProtocolError))?;
    rate_limits::charge(exchange, &mut progress.limits, &answer.headers);
    let head = headers::downstream(
        exchange,
        client,
        answer,
        answered.is_upgrade,
        Some(&progress.limits),
    )
    .map_err(|_| Rejection::of(Reason::UpstreamProtocolError))?;
    progress.status = head.status.as_u16();
    answered.parting = Parting::of(exchange, client, answer, answered.is_upgrade);
    answered.capture = if answered.is_upgrade {
        None
    } else {
        stale::capture(exchange, client, answer)
    };
    let ends_with_connection = !is_framed(&head) && !answered.is_upgrade;
    if exchange.is_closing() || ends_with_connection || !client.is_body_done() {
        client.close_after();
    }
    client.write_head(head).await.map_err(gone)?;
    if let Some(first) = answered.first.take() {
        follow(&mut answered, &first);
        client.write(first).await.map_err(gone)?;
    }
    let flowed = if answered.is_upgrade {
        body.becomes_tunnel();
        duplex::tunnel(exchange, client, body, &mut answered).await
    } else if body.is_done() && (!answered.is_listening || answered.upstream.is_pushed()) {
        simple(exchange, client, &mut answered).await
    } else {
        answered.capture = None;
        duplex::both_ways(exchange, client, body, &mut answered).await
    };
    settle(client, &mut answered, flowed.err(), progress);
    if let Some(capture) = answered.capture.take().filter(|_| flowed.is_ok()) {
        capture.keep();
    }
    if let Err(reason) = flowed {
        progress.reason = Some(reason);
        break_off(exchange, client, reason, progress).await;
        return Ok(After::Close);
    }
    let is_request_complete = body.is_done() && answered.is_listening;
    let is_upgrade = answered.is_upgrade;
    answered
        .upstream
        .release(exchange.worker, is_request_complete, clock::now())
        .await;
    Ok(match (is_upgrade, body.is_done()) {
        (false, true) => After::Reuse,
        (true, _) | (false, false) => After::Linger,
    })
}

/// Judges a call of gRPC, now that its trailers are here, or will never be.
fn settle(
    client: &Client,
    answered: &mut Answered,
    broken: Option<Reason>,
    progress: &mut Progress,
) {
    let in_trailers = answered.upstream.trailers().and_then(grpc::status);
    if client.is_grpc() {
        progress.grpc_status = answered.grpc_status.or(in_trailers);
    }
    let Some(unsettled) = answered.unsettled.take() else {
        return;
    };
    let now = clock::now();
    match (in_trailers, broken) {
        (Some(status), _) => unsettled.settle(grpc::judge(status), None, now),
        // How little time a client gives says nothing about the backend.
        (None, Some(Reason::ClientClosed | Reason::RequestTimeout | Reason::Draining)) => {
            unsettled.give_up(now)
        }
        (None, Some(Reason::StreamIdleTimeout)) => {
            unsettled.settle(cut_off(AttemptOutcome::Timeout), None, now)
        }
        (None, Some(_)) => unsettled.settle(cut_off(AttemptOutcome::Reset), None, now),
        // An end without a status is none that gRPC knows: it is taken as "unknown".
        (None, None) => unsettled.settle(grpc::judge(grpc::of_http(0)), None, now),
    }
}

/// The head is on its way; all that can be done is to let out what came, and to stop short of the end, or to say how it ended.
async fn break_off(
    exchange: &Exchange<'_>,
    client: &mut Client,
    reason: Reason,
    progress: &mut Progress,
) {
    let idle = exchange.destination.policy.timeouts.stream_idle;
    if reason == Reason::ClientClosed {
        return;
    }
    if client.is_grpc() {
        let rejection = Rejection::of(reason);
        let status = rejection.grpc_status();
        progress.grpc_status = Some(status);
        // A client that is gone needs no more telling.
        _ = client
            .finish(Some(grpc::end(status, rejection::words(reason))))
            .await;
        _ = push(client, idle).await;
        return;
    }
    if reason == Reason::Draining {
        // It ends between two of its parts, and looks as if it had ended there by itself.
        _ = client.finish(None).await;
        _ = push(client, idle).await;
        return;
    }
    if reason == Reason::UpstreamReset {
        _ = push(client, idle).await;
    }
    match &mut client.stream {
        ClientStream::Http2(exchange) => exchange.break_off(),
        // Where the end of the connection is the end of the body, a proper end would be taken for it.
        ClientStream::Http1(http1) => http1.wire.reset_on_close(),
    }
}

/// Whether a client can tell where the body ends without the connection's end.
fn is_framed(head: &ResponseHeader) -> bool {
    let has_no_body = head.status == 204 || head.status == 304;
    has_no_body
        || head.headers.contains_key(header::CONTENT_LENGTH)
        || head.headers.contains_key(header::TRANSFER_ENCODING)
}

async fn simple(
    exchange: &Exchange<'_>,
    client: &mut Client,
    answered: &mut Answered,
) -> Result<(), Reason> {
    let idle = exchange.destination.policy.timeouts.stream_idle;
    let mut queued = 0;
    while !answered.upstream.is_body_done() {
        let piece = {
            let mut read = pin!(answered.upstream.read());
            let at_hand =
                std::future::poll_fn(|context| Poll::Ready(read.as_mut().poll(context))).await;
            match at_hand {
                Poll::Ready(piece) => match piece? {
                    // There is more, and there always would be.
                    Some(_) if parting::is_due(answered.parting.as_ref(), exchange) => {
                        return Err(Reason::Draining);
                    }
                    piece => piece,
                },
                Poll::Pending => {
                    queued = 0;
                    push(client, idle).await?;
                    let slow = async {
                        tokio::select! {
                            biased;
                            piece = &mut read => piece,
                            reason = client.gone() => Err(reason),
                            () = parting::due(&mut answered.parting, exchange) => Err(Reason::Draining),
                        }
                    };
                    match clock::until(patience(idle, answered.until), slow).await {
                        Ok(piece) => piece?,
                        Err(clock::Elapsed) => return Err(impatience(answered.until)),
                    }
                }
            }
        };
        let Some(piece) = piece else { break };
        follow(answered, &piece);
        queued += piece.len();
        client.write(piece).await?;
        if queued >= PIECE {
            queued = 0;
            push(client, idle).await?;
        }
    }
    // The endpoint has done its part; how long the client takes is not its load.
    drop(answered.in_flight.take());
    client.finish(answered.upstream.trailers().cloned()).await?;
    push(client, idle).await
}

/// Keeps a piece of what is to be kept, as long as it is not too long, and takes note of where it ends.
fn follow(answered: &mut Answered, piece: &Bytes) {
    if let Some(parting) = &mut answered.parting {
        parting.note(piece);
    }
    let capture = &mut answered.capture;
    if capture.as_mut().is_some_and(|capture| !capture.push(piece)) {
        *capture = None;
    }
}

/// Until when a silence is borne.
pub(super) fn patience(idle: Option<Duration>, until: Option<Instant>) -> Option<Instant> {
    [idle.map(|idle| clock::now() + idle), until]
        .into_iter()
        .flatten()
        .min()
}

/// Why it is borne no longer.
pub(super) fn impatience(until: Option<Instant>) -> Reason {
    if until.is_some_and(|until| clock::now() >= until) {
        Reason::RequestTimeout
    } else {
        Reason::StreamIdleTimeout
    }
}

async fn push(client: &mut Client, idle: Option<Duration>) -> Result<(), Reason> {
    clock::within(idle, client.push())
        .await
        .map_err(|_| Reason::StreamIdleTimeout)?
}
