//! Both directions at once: an answer that begins before the request has ended, and a tunnel.
//!
//! Four things can happen next, and each waits only for its own: the client takes what is queued for it, the backend takes what
//! is queued for it, the client sends, the backend sends. A side is read only when the other side's queue is empty, so that
//! no more than one piece is ever held in either direction, and no side can block the other.

use super::{
    asking,
    attempt::Answered,
    client::{Client, ClientEvent, Listen},
    parting,
    relay::{impatience, patience},
    request_body::RequestBody,
    serve::Exchange,
    upstream::{Await, UpstreamEvent},
};
use crate::{clock, telemetry::reason::Reason};

enum Event {
    Client(ClientEvent),
    Upstream(UpstreamEvent),
    /// This instance leaves, and the stream is to end.
    Parting,
}

/// Passes the rest of the request and the answer on, until the answer is complete.
pub(super) async fn both_ways(
    exchange: &Exchange<'_>,
    client: &mut Client,
    body: &mut RequestBody,
    answered: &mut Answered,
) -> Result<(), Reason> {
    while !answered.upstream.is_body_done() || !client.is_pushed() {
        match next(exchange, client, body, answered, true).await? {
            Event::Client(ClientEvent::Pushed(pushed)) => pushed?,
            Event::Client(ClientEvent::Read(read)) => {
                let piece = read?;
                let is_last = piece.is_none() || client.is_body_done();
                body.note(piece.as_ref(), is_last, client.take_trailers())
                    .map_err(|rejection| rejection.reason)?;
                answered.is_listening &= asking::forward(
                    &mut answered.upstream,
                    piece.as_ref(),
                    body.is_done(),
                    body.trailers(),
                )
                .await
                .is_ok();
            }
            // The backend may want no more of the request; its answer goes on.
            Event::Upstream(UpstreamEvent::Pushed(is_taken)) => answered.is_listening &= is_taken,
            Event::Upstream(UpstreamEvent::Body(read)) => match read? {
                Some(piece) => {
                    note(answered, &piece);
                    client.write(piece).await?;
                }
                None => break,
            },
            Event::Upstream(UpstreamEvent::Head(_)) => return Err(Reason::UpstreamProtocolError),
            Event::Parting => return Err(Reason::Draining),
        }
    }
    client.finish(answered.upstream.trailers().cloned()).await?;
    let idle = exchange.destination.policy.timeouts.stream_idle;
    clock::within(idle, client.push())
        .await
        .map_err(|_| Reason::StreamIdleTimeout)?
}

/// Passes bytes both ways until one side closes and what it sent before has arrived. A client that was told that this instance goes away gets
/// nothing more of the backend, and says good-bye to it itself.
pub(super) async fn tunnel(
    exchange: &Exchange<'_>,
    client: &mut Client,
    body: &mut RequestBody,
    answered: &mut Answered,
) -> Result<(), Reason> {
    answered.upstream.become_tunnel();
    let mut is_open = true;
    let mut was_told = false;
    while is_open || !client.is_pushed() || !answered.upstream.is_pushed() {
        match next(exchange, client, body, answered, is_open).await? {
            Event::Client(ClientEvent::Pushed(pushed)) => pushed?,
            Event::Client(ClientEvent::Read(read)) => match read? {
                Some(piece) => answered.upstream.write_raw(&piece).await?,
                None => is_open = false,
            },
            Event::Upstream(UpstreamEvent::Pushed(true)) => {}
            Event::Upstream(UpstreamEvent::Pushed(false)) => return Err(Reason::UpstreamReset),
            // After the good-bye it does not matter how the backend ends.
            Event::Upstream(UpstreamEvent::Body(Err(_))) if was_told => is_open = false,
            Event::Upstream(UpstreamEvent::Body(read)) => match read? {
                Some(_) if was_told => {}
                Some(piece) => {
                    note(answered, &piece);
                    client.write(piece).await?;
                }
                None => is_open = false,
            },
            Event::Upstream(UpstreamEvent::Head(_)) => return Err(Reason::UpstreamProtocolError),
            Event::Parting => {
                was_told = true;
                answered.parting = None;
                client.write(parting::GOING_AWAY).await?;
            }
        }
    }
    client.shutdown().await;
    Ok(())
}

fn note(answered: &mut Answered, piece: &[u8]) {
    if let Some(parting) = &mut answered.parting {
        parting.note(piece);
    }
}

/// Waits for what happens next; `may_read` is false when both sides have said all that is passed on.
async fn next(
    exchange: &Exchange<'_>,
    client: &mut Client,
    body: &RequestBody,
    answered: &mut Answered,
    may_read: bool,
) -> Result<Event, Reason> {
    let idle = exchange.destination.policy.timeouts.stream_idle;
    let is_listening = answered.is_listening;
    if client.is_pushed() && parting::is_due(answered.parting.as_ref(), exchange) {
        return Ok(Event::Parting);
    }
    let upstream = &mut answered.upstream;
    let wanted = if may_read && !upstream.is_body_done() && client.is_pushed() {
        Await::Body
    } else {
        Await::Nothing
    };
    let may_listen = may_read && (body.is_done() || (is_listening && upstream.is_pushed()));
    let listen = if may_listen {
        Listen::after(body.is_done())
    } else {
        Listen::Not
    };
    let event = async {
        tokio::select! {
            biased;
            event = client.next(listen) => Event::Client(event),
            event = upstream.next(wanted, is_listening) => Event::Upstream(event),
            () = parting::due(&mut answered.parting, exchange) => Event::Parting,
        }
    };
    clock::until(patience(idle, answered.until), event)
        .await
        .map_err(|_| impatience(answered.until))
}
