//! Both directions at once: an answer that begins before the request has ended, and a tunnel.
//!
//! Four things can happen next, and each waits only for its own: the client takes what is queued for it, the backend takes what
//! is queued for it, the client sends, the backend sends. A side is read only when the other side's queue is empty, so that
//! no more than one piece is ever held in either direction, and no side can block the other.

use crate::{
    clock,
    proxy::{
        asking,
        attempt::UpstreamResponse,
        client::{Client, DownstreamEvent, DownstreamInterest},
        parting,
        relay::{idle_deadline, timeout_reason},
        request_body::RequestBody,
        serve::RequestContext,
        upstream::{UpstreamEvent, UpstreamInterest},
    },
    telemetry::reason::Reason,
};

enum DuplexEvent {
    Client(DownstreamEvent),
    Upstream(UpstreamEvent),
    /// This instance leaves, and the stream is to end.
    ShutdownDue,
}

/// Passes the rest of the request and the answer on, until the answer is complete.
pub(super) async fn relay_both_directions(
    context: &RequestContext<'_>,
    client: &mut Client,
    body: &mut RequestBody,
    response: &mut UpstreamResponse,
) -> Result<(), Reason> {
    while !response.upstream.is_body_done() || !client.is_flushed() {
        match next_event(context, client, body, response, true).await? {
            DuplexEvent::Client(DownstreamEvent::Flushed(flushed)) => flushed?,
            DuplexEvent::Client(DownstreamEvent::Read(read)) => {
                let chunk = read?;
                let is_last = chunk.is_none() || client.is_body_done();
                body.record_chunk(chunk.as_ref(), is_last, client.take_trailers())
                    .map_err(|rejection| rejection.reason)?;
                response.accepts_body &= asking::forward_chunk(
                    &mut response.upstream,
                    chunk.as_ref(),
                    body.is_done(),
                    body.trailers(),
                )
                .await
                .is_ok();
            }
            // The backend may want no more of the request; its answer goes on.
            DuplexEvent::Upstream(UpstreamEvent::Flushed(is_accepted)) => {
                response.accepts_body &= is_accepted
            }
            DuplexEvent::Upstream(UpstreamEvent::Body(read)) => match read? {
                Some(chunk) => {
                    observe_chunk(response, &chunk);
                    client.write(chunk).await?;
                }
                None => break,
            },
            DuplexEvent::Upstream(UpstreamEvent::Head(_)) => {
                return Err(Reason::UpstreamProtocolError);
            }
            DuplexEvent::ShutdownDue => return Err(Reason::Draining),
        }
    }
    client.finish(response.upstream.trailers().cloned()).await?;
    let idle_timeout = context.destination.policy.timeouts.stream_idle;
    clock::timeout(idle_timeout, client.flush())
        .await
        .map_err(|_| Reason::StreamIdleTimeout)?
}

/// Passes bytes both ways until one side closes and what it sent before has arrived. A client that was told that this instance goes away gets
/// nothing more of the backend, and says good-bye to it itself.
pub(super) async fn relay_tunnel(
    context: &RequestContext<'_>,
    client: &mut Client,
    body: &mut RequestBody,
    response: &mut UpstreamResponse,
) -> Result<(), Reason> {
    response.upstream.switch_to_tunnel();
    let mut is_open = true;
    let mut is_close_sent = false;
    while is_open || !client.is_flushed() || !response.upstream.is_flushed() {
        match next_event(context, client, body, response, is_open).await? {
            DuplexEvent::Client(DownstreamEvent::Flushed(flushed)) => flushed?,
            DuplexEvent::Client(DownstreamEvent::Read(read)) => match read? {
                Some(chunk) => response.upstream.write_tunnel_bytes(&chunk).await?,
                None => is_open = false,
            },
            DuplexEvent::Upstream(UpstreamEvent::Flushed(true)) => {}
            DuplexEvent::Upstream(UpstreamEvent::Flushed(false)) => {
                return Err(Reason::UpstreamReset);
            }
            // After the good-bye it does not matter how the backend ends.
            DuplexEvent::Upstream(UpstreamEvent::Body(Err(_))) if is_close_sent => is_open = false,
            DuplexEvent::Upstream(UpstreamEvent::Body(read)) => match read? {
                Some(_) if is_close_sent => {}
                Some(chunk) => {
                    observe_chunk(response, &chunk);
                    client.write(chunk).await?;
                }
                None => is_open = false,
            },
            DuplexEvent::Upstream(UpstreamEvent::Head(_)) => {
                return Err(Reason::UpstreamProtocolError);
            }
            DuplexEvent::ShutdownDue => {
                is_close_sent = true;
                response.stream_shutdown = None;
                client.write(parting::WEBSOCKET_GOING_AWAY).await?;
            }
        }
    }
    client.shutdown().await;
    Ok(())
}

fn observe_chunk(response: &mut UpstreamResponse, chunk: &[u8]) {
    if let Some(stream_shutdown) = &mut response.stream_shutdown {
        stream_shutdown.observe_chunk(chunk);
    }
}

/// Waits for what happens next; `may_read` is false when both sides have said all that is passed on.
async fn next_event(
    context: &RequestContext<'_>,
    client: &mut Client,
    body: &RequestBody,
    response: &mut UpstreamResponse,
    may_read: bool,
) -> Result<DuplexEvent, Reason> {
    let idle_timeout = context.destination.policy.timeouts.stream_idle;
    let accepts_body = response.accepts_body;
    if client.is_flushed() && parting::is_due(response.stream_shutdown.as_ref(), context) {
        return Ok(DuplexEvent::ShutdownDue);
    }
    let upstream = &mut response.upstream;
    let upstream_interest = if may_read && !upstream.is_body_done() && client.is_flushed() {
        UpstreamInterest::Body
    } else {
        UpstreamInterest::Nothing
    };
    let may_read_downstream =
        may_read && (body.is_done() || (accepts_body && upstream.is_flushed()));
    let downstream_interest = if may_read_downstream {
        DownstreamInterest::from_body_state(body.is_done())
    } else {
        DownstreamInterest::Nothing
    };
    let event = async {
        tokio::select! {
            biased;
            event = client.next_event(downstream_interest) => DuplexEvent::Client(event),
            event = upstream.next_event(upstream_interest, accepts_body) => DuplexEvent::Upstream(event),
            () = parting::wait_until_due(&mut response.stream_shutdown, context) => DuplexEvent::ShutdownDue,
        }
    };
    clock::timeout_at(idle_deadline(idle_timeout, response.call_deadline), event)
        .await
        .map_err(|_| timeout_reason(response.call_deadline))
}
