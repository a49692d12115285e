//! Both directions at once: an answer that begins before the request has ended, and a tunnel.
//!
//! Four things can happen next, and each waits only for its own: the client takes what is queued for it, the backend takes what
//! is queued for it, the client sends, the backend sends. A side is read only when the other side's queue is empty, so that
//! no more than one piece is ever held in either direction, and no side can block the other.

use super::{
    attempt::{self, Answered},
    client::Client,
    request_body::RequestBody,
    serve::Exchange,
};
use crate::{clock, telemetry::reason::Reason};

enum Event {
    ToClient(std::io::Result<()>),
    ToBackend(std::io::Result<()>),
    FromBackend(pingora::Result<Option<bytes::Bytes>>),
    FromClient(pingora::Result<Option<bytes::Bytes>>),
}

/// Passes the rest of the request and the answer on, until the answer is complete.
pub(super) async fn both_ways(exchange: &Exchange<'_>, client: &mut Client, body: &mut RequestBody, answered: &mut Answered) -> Result<(), Reason> {
    while !answered.upstream.session.is_body_done() || !client.wire.is_pushed() {
        match next(exchange, client, body, answered, true).await? {
            Event::ToClient(pushed) => pushed.map_err(|_| Reason::ClientClosed)?,
            // The backend wants no more of the request; its answer goes on.
            Event::ToBackend(pushed) => answered.is_listening &= pushed.is_ok(),
            Event::FromBackend(read) => match read.map_err(|_| Reason::UpstreamReset)? {
                Some(chunk) => client.session.write_response_body(chunk, false).await.map_err(|_| Reason::ClientClosed)?,
                None => break,
            },
            Event::FromClient(read) => {
                let chunk = read.map_err(|_| Reason::ClientClosed)?;
                body.note(chunk.as_ref(), chunk.is_none() || client.session.is_body_done()).map_err(|rejection| rejection.reason)?;
                answered.is_listening &= attempt::write(&mut answered.upstream, chunk.as_ref(), body.is_done()).await.is_ok();
            }
        }
    }
    client.session.finish_body().await.map_err(|_| Reason::ClientClosed)?;
    let idle = exchange.destination.policy.timeouts.stream_idle;
    clock::within(idle, client.wire.push()).await.map_err(|_| Reason::StreamIdleTimeout)?.map_err(|_| Reason::ClientClosed)
}

/// Passes bytes both ways until one side closes and what it sent before has arrived.
pub(super) async fn tunnel(exchange: &Exchange<'_>, client: &mut Client, body: &mut RequestBody, answered: &mut Answered) -> Result<(), Reason> {
    answered.upstream.session.maybe_upgrade_body_writer();
    let mut is_open = true;
    while is_open || !client.wire.is_pushed() || !answered.upstream.wire.is_pushed() {
        match next(exchange, client, body, answered, is_open).await? {
            Event::ToClient(pushed) => pushed.map_err(|_| Reason::ClientClosed)?,
            Event::ToBackend(pushed) => pushed.map_err(|_| Reason::UpstreamReset)?,
            Event::FromBackend(read) => match read.map_err(|_| Reason::UpstreamReset)? {
                Some(chunk) => client.session.write_response_body(chunk, false).await.map_err(|_| Reason::ClientClosed)?,
                None => is_open = false,
            },
            Event::FromClient(read) => match read.map_err(|_| Reason::ClientClosed)? {
                Some(chunk) => drop(answered.upstream.session.write_body(&chunk).await.map_err(|_| Reason::UpstreamReset)?),
                None => is_open = false,
            },
        }
    }
    client.session.shutdown().await;
    Ok(())
}

/// Waits for what happens next; `may_read` is false when both sides have said all that is passed on.
async fn next(exchange: &Exchange<'_>, client: &mut Client, body: &RequestBody, answered: &mut Answered, may_read: bool) -> Result<Event, Reason> {
    let idle = exchange.destination.policy.timeouts.stream_idle;
    let upstream = &mut answered.upstream;
    let is_listening = answered.is_listening;
    let has_more = may_read && !upstream.session.is_body_done();
    let event = async {
        tokio::select! {
            biased;
            pushed = client.wire.push(), if !client.wire.is_pushed() => Event::ToClient(pushed),
            pushed = upstream.wire.push(), if is_listening && !upstream.wire.is_pushed() => Event::ToBackend(pushed),
            read = upstream.session.read_body_bytes(), if has_more && client.wire.is_pushed() => Event::FromBackend(read),
            read = client.session.read_body_or_idle(body.is_done()), if may_read && (body.is_done() || (is_listening && upstream.wire.is_pushed())) => Event::FromClient(read),
        }
    };
    clock::within(idle, event).await.map_err(|_| Reason::StreamIdleTimeout)
}
