//! Passing an answer on.
//!
//! Without a request body in flight this is a simple loop: read a piece, write it, and push when there is no more at hand. So a
//! small answer leaves in one packet, a large one never queues more than a piece, and a slow one is passed on as it comes. An
//! answer that breaks off is broken off towards the client too, never completed.

use std::{future::Future, pin::pin, task::Poll};

use http::header;
use pingora::http::ResponseHeader;

use super::{
    attempt::{Answered, client_failure},
    client::Client,
    duplex, headers,
    rejection::Rejection,
    request_body::RequestBody,
    serve::{After, Exchange, Progress},
};
use crate::{clock, telemetry::reason::Reason};

/// What is queued towards a client before it is pushed, although more is at hand.
const PIECE: usize = 16 << 10;

/// Passes an answer on; what becomes of the client's connection.
pub(super) async fn relay(exchange: &Exchange<'_>, client: &mut Client, body: &mut RequestBody, mut answered: Answered, progress: &mut Progress) -> Result<After, Rejection> {
    let answer = answered.upstream.session.resp_header().ok_or_else(|| Rejection::of(Reason::UpstreamProtocolError))?;
    let head = headers::downstream(exchange, client, answer, answered.is_upgrade).map_err(|_| Rejection::of(Reason::UpstreamProtocolError))?;
    progress.status = head.status.as_u16();
    let ends_with_connection = !is_framed(&head) && !answered.is_upgrade;
    if exchange.is_closing() || ends_with_connection || !client.session.is_body_done() {
        client.session.set_keepalive(None);
    }
    client.session.write_response_header(head).await.map_err(|error| client_failure(&error))?;
    let flowed = if answered.is_upgrade {
        body.becomes_tunnel();
        duplex::tunnel(exchange, client, body, &mut answered).await
    } else if body.is_done() && (!answered.is_listening || answered.upstream.wire.is_pushed()) {
        simple(exchange, client, &mut answered).await
    } else {
        duplex::both_ways(exchange, client, body, &mut answered).await
    };
    if let Err(reason) = flowed {
        // The head is on its way; all that can be done is to let out what came, and to stop short of its end.
        progress.reason = Some(reason);
        if reason == Reason::UpstreamReset {
            _ = push(client, exchange.destination.policy.timeouts.stream_idle).await;
        }
        return Ok(After::Close);
    }
    let is_request_complete = body.is_done() && answered.is_listening;
    let is_upgrade = answered.is_upgrade;
    answered.upstream.release(exchange.worker, is_request_complete, clock::now()).await;
    Ok(match (is_upgrade, body.is_done()) {
        (false, true) => After::Reuse,
        (true, _) | (false, false) => After::Linger,
    })
}

/// Whether a client can tell where the body ends without the connection's end.
fn is_framed(head: &ResponseHeader) -> bool {
    let has_no_body = head.status == 204 || head.status == 304;
    has_no_body || head.headers.contains_key(header::CONTENT_LENGTH) || head.headers.contains_key(header::TRANSFER_ENCODING)
}

async fn simple(exchange: &Exchange<'_>, client: &mut Client, answered: &mut Answered) -> Result<(), Reason> {
    let idle = exchange.destination.policy.timeouts.stream_idle;
    let upstream = &mut answered.upstream;
    let mut queued = 0;
    while !upstream.session.is_body_done() {
        let chunk = {
            let mut read = pin!(upstream.session.read_body_bytes());
            let at_hand = std::future::poll_fn(|context| Poll::Ready(read.as_mut().poll(context))).await;
            match at_hand {
                Poll::Ready(chunk) => chunk,
                Poll::Pending => {
                    queued = 0;
                    push(client, idle).await?;
                    let slow = async {
                        tokio::select! {
                            biased;
                            chunk = &mut read => Ok(chunk),
                            gone = client.session.read_body_or_idle(true) => Err(gone),
                        }
                    };
                    match clock::within(idle, slow).await {
                        Ok(Ok(chunk)) => chunk,
                        Ok(Err(_)) => return Err(Reason::ClientClosed),
                        Err(clock::Elapsed) => return Err(Reason::StreamIdleTimeout),
                    }
                }
            }
        };
        let Some(chunk) = chunk.map_err(|_| Reason::UpstreamReset)? else { break };
        queued += chunk.len();
        client.session.write_response_body(chunk, false).await.map_err(|_| Reason::ClientClosed)?;
        if queued >= PIECE {
            queued = 0;
            push(client, idle).await?;
        }
    }
    client.session.finish_body().await.map_err(|_| Reason::ClientClosed)?;
    push(client, idle).await
}

async fn push(client: &Client, idle: Option<std::time::Duration>) -> Result<(), Reason> {
    match clock::within(idle, client.wire.push()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Reason::ClientClosed),
        Err(clock::Elapsed) => Err(Reason::StreamIdleTimeout),
    }
}
