//! One attempt at one endpoint: connect, send what is there of the request, and wait for the head of the answer, all the while
//! watching the client.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use http::HeaderMap;
use pingora::http::ResponseHeader;

use super::{
    asker::Asker,
    attempt::{Failed, gone},
    classify::Broken,
    client::{Client, ClientEvent, Listen},
    deadline::Deadline,
    headers,
    http2::client::Fault,
    peer::{self, NoConnection, Wanted},
    rejection::Rejection,
    serve::Exchange,
    upstream::{Await, Upstream, UpstreamEvent},
};
use crate::{
    clock,
    state::endpoint::{EndpointState, TooMany},
    telemetry::reason::Reason,
};

/// What is known when a head has come.
pub(super) struct Head {
    pub(super) is_upgrade: bool,
    pub(super) is_listening: bool,
}

/// Asks an endpoint.
pub(super) async fn ask(
    exchange: &Exchange<'_>,
    asker: &mut Asker<'_>,
    deadline: &mut Deadline,
    number: u32,
    endpoint: &Arc<EndpointState>,
) -> Result<(Upstream, Head), Failed> {
    let mut upstream = connect(exchange, asker.asked().is_idempotent(), deadline, endpoint).await?;
    let has_body = !asker.is_done() || !asker.body().is_empty();
    let time_left = deadline.for_backend(
        exchange.destination.policy.timeouts.backend_request,
        clock::now(),
    );
    let asked = asker.asked();
    let attempt = asked.attempt().saturating_add(number - 1);
    let head = headers::upstream(exchange, &asked, endpoint, attempt, has_body, time_left);
    // Writing only queues, so that it fails only on a head that cannot be written.
    upstream
        .write_head(head.map_err(|_| Rejection::of(Reason::InternalError))?)
        .await?;
    for piece in asker.body() {
        upstream.write(piece).await?;
    }
    if asker.is_done() {
        upstream.finish(asker.trailers().cloned()).await?;
    }
    let head = await_head(exchange, asker, deadline, &mut upstream).await?;
    Ok((upstream, head))
}

async fn connect(
    exchange: &Exchange<'_>,
    is_repeatable: bool,
    deadline: &Deadline,
    endpoint: &Arc<EndpointState>,
) -> Result<Upstream, Failed> {
    let destination = exchange.destination;
    let enforced = destination.enforced_limits();
    let now = clock::now();
    let wanted = Wanted {
        is_repeatable,
        max_connections: enforced.map_or(u32::MAX, |limits| limits.max_connections),
        max_connections_each: enforced.map_or(u32::MAX, |limits| limits.max_connections_each),
        until: [
            destination
                .policy
                .timeouts
                .connect
                .map(|connect| now + connect),
            deadline.at(),
        ]
        .into_iter()
        .flatten()
        .min(),
        is_http2: exchange.is_to_http2(),
        tls: destination.backend.spec.tls.as_ref(),
    };
    peer::connect(exchange.worker, endpoint, &wanted, now)
        .await
        .map_err(|none| match none {
            NoConnection::Failed => Failed::Broken(Broken::ConnectFailed),
            NoConnection::NotTrusted => Failed::Broken(Broken::TlsFailed),
            NoConnection::TimedOut if deadline.time_left(clock::now()).is_zero() => {
                Broken::TimedOut { is_request: true }.into()
            }
            NoConnection::TimedOut => Failed::Broken(Broken::ConnectTimeout),
            NoConnection::TooMany(TooMany::OfBackend) => Rejection::by(
                Reason::ConnectionLimit,
                destination.backend.spec.name.clone(),
            )
            .into(),
            NoConnection::TooMany(TooMany::OfEndpoint) => Failed::Full,
        })
}

enum Event {
    Upstream(UpstreamEvent),
    Client(ClientEvent),
}

/// Sends the rest of the request and waits for the head of the answer, whichever comes first.
async fn await_head(
    exchange: &Exchange<'_>,
    asker: &mut Asker<'_>,
    deadline: &mut Deadline,
    upstream: &mut Upstream,
) -> Result<Head, Failed> {
    let mut is_listening = true;
    let mut until = limit(exchange, deadline, asker.is_done());
    loop {
        let listen = if asker.is_done() || (is_listening && upstream.is_pushed()) {
            Listen::after(asker.is_done())
        } else {
            Listen::Not
        };
        let events = async {
            tokio::select! {
                biased;
                event = upstream.next(Await::Head, is_listening) => Event::Upstream(event),
                event = asker.next(listen) => Event::Client(event),
            }
        };
        let Ok(event) = clock::until(until, events).await else {
            return Err(timed_out(deadline, asker.is_done(), upstream));
        };
        match event {
            Event::Upstream(UpstreamEvent::Head(Ok(()))) => {
                if let Some(head) = answered(exchange, asker, upstream, is_listening).await? {
                    return Ok(head);
                }
            }
            Event::Upstream(UpstreamEvent::Head(Err(fault))) => {
                return Err(broken(fault, upstream).into());
            }
            Event::Upstream(UpstreamEvent::Pushed(true)) => {
                until = limit(exchange, deadline, asker.is_done())
            }
            // It takes no more; it may have answered before it closed.
            Event::Upstream(UpstreamEvent::Pushed(false)) => is_listening = false,
            Event::Upstream(UpstreamEvent::Body(_)) => return Err(Broken::Protocol.into()),
            Event::Client(ClientEvent::Pushed(pushed)) => pushed.map_err(gone)?,
            Event::Client(ClientEvent::Read(read)) => {
                let piece = read.map_err(gone)?;
                asker.note(piece.as_ref())?;
                forward(upstream, piece.as_ref(), asker.is_done(), asker.trailers()).await?;
                until = limit(exchange, deadline, asker.is_done());
            }
        }
    }
}

/// Waits for the first piece of an answer, or for its end: what comes without a piece has delivered nothing yet. No longer than an attempt
/// may take; then it goes on as it is.
pub(super) async fn first_piece(
    exchange: &Exchange<'_>,
    asker: &mut Asker<'_>,
    deadline: &Deadline,
    upstream: &mut Upstream,
) -> Result<Option<Bytes>, Failed> {
    if upstream.is_body_done() {
        return Ok(None);
    }
    let longest = exchange
        .destination
        .policy
        .timeouts
        .backend_request
        .map(|one| clock::now() + one);
    let first = async {
        tokio::select! {
            biased;
            read = upstream.read() => Ok(read),
            reason = asker.gone() => Err(Failed::Rejected(gone(reason))),
        }
    };
    match clock::until([longest, deadline.at()].into_iter().flatten().min(), first).await {
        Ok(Ok(Ok(piece))) => Ok(piece),
        Ok(Ok(Err(_))) => Err(Broken::Reset { has_sent: true }.into()),
        Ok(Err(left)) => Err(left),
        Err(clock::Elapsed) => Ok(None),
    }
}

/// Queues what was just read of the request.
pub(super) async fn forward(
    upstream: &mut Upstream,
    piece: Option<&Bytes>,
    is_done: bool,
    trailers: Option<&HeaderMap>,
) -> Result<(), Rejection> {
    if let Some(piece) = piece {
        upstream.write(piece).await?;
    }
    if is_done {
        upstream.finish(trailers.cloned()).await
    } else {
        Ok(())
    }
}

/// When the wait for the head is over: a client that is still sending may take its time, piece by piece.
fn limit(exchange: &Exchange<'_>, deadline: &mut Deadline, is_done: bool) -> Option<Instant> {
    let timeouts = &exchange.destination.policy.timeouts;
    let now = clock::now();
    let one = if is_done {
        timeouts.backend_request
    } else {
        timeouts.stream_idle
    };
    if is_done {
        deadline.begin(now, now);
    }
    [one.map(|one| now + one), deadline.at()]
        .into_iter()
        .flatten()
        .min()
}

/// Looks at a head; an interim one is passed on, and the next is waited for.
async fn answered(
    exchange: &Exchange<'_>,
    asker: &mut Asker<'_>,
    upstream: &Upstream,
    is_listening: bool,
) -> Result<Option<Head>, Failed> {
    let Some(head) = upstream.head() else {
        return Err(Broken::Protocol.into());
    };
    if head.status == 101 {
        let fits = is_listening
            && upstream.was_upgraded()
            && headers::wanted_upgrade(&asker.asked())
                .is_some_and(|wanted| is_agreed(wanted, head));
        return if fits {
            Ok(Some(Head {
                is_upgrade: true,
                is_listening,
            }))
        } else {
            Err(Broken::Protocol.into())
        };
    }
    if !head.status.is_informational() {
        return Ok(Some(Head {
            is_upgrade: false,
            is_listening,
        }));
    }
    if let Asker::Client(client, _) = asker {
        let head = head.clone();
        pass_on_interim(exchange, client, &head).await?;
    }
    Ok(None)
}

fn broken(fault: Fault, upstream: &Upstream) -> Broken {
    match fault {
        Fault::Refused => Broken::Refused,
        Fault::Protocol => Broken::Protocol,
        Fault::Reset => Broken::Reset {
            has_sent: upstream.has_sent(),
        },
    }
}

fn timed_out(deadline: &Deadline, is_done: bool, upstream: &Upstream) -> Failed {
    upstream.timed_out();
    let is_request = deadline.time_left(clock::now()).is_zero();
    if is_request || is_done || !upstream.is_pushed() {
        return Broken::TimedOut { is_request }.into();
    }
    gone(Reason::StreamIdleTimeout).into()
}

/// Whether a 101 names what was asked for.
fn is_agreed(wanted: &str, answer: &ResponseHeader) -> bool {
    let given = answer
        .headers
        .get(http::header::UPGRADE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    !given.is_empty()
        && wanted
            .split(',')
            .any(|wanted| wanted.trim().eq_ignore_ascii_case(given.trim()))
}

/// Passes an interim answer on (RFC 9110 section 15.2); a client of HTTP/1.0 would not understand it.
async fn pass_on_interim(
    exchange: &Exchange<'_>,
    client: &mut Client,
    head: &ResponseHeader,
) -> Result<(), Rejection> {
    if !matches!(
        client.head().version,
        http::Version::HTTP_11 | http::Version::HTTP_2
    ) {
        return Ok(());
    }
    let head = headers::downstream(exchange, client, head, false, None)
        .map_err(|_| Rejection::of(Reason::InternalError))?;
    client.write_interim(head).await.map_err(gone)?;
    let idle = exchange.destination.policy.timeouts.stream_idle;
    clock::within(idle, client.push())
        .await
        .map_err(|_| gone(Reason::ClientClosed))?
        .map_err(gone)
}
