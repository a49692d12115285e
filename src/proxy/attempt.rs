//! Attempts at a backend, until there is an answer to pass on, or none to be had.
//!
//! One attempt picks an endpoint, asks its breaker, connects, sends what is there of the request and waits for the head of the
//! answer, all the while watching the client. How it ended settles the breaker's permit; an attempt that is given up because the
//! client left gives its permit back unjudged.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use pingora::{ErrorType, http::ResponseHeader};

use super::{
    classify::{self, Broken},
    client::Client,
    headers,
    peer::{self, NoConnection, Upstream},
    picking::{self, Picked},
    rejection::Rejection,
    request_body::RequestBody,
    retrying::{self, Tries},
    serve::{Exchange, Progress},
};
use crate::{
    clock,
    resilience::{
        Mode,
        breaker::{Outcome, Speed},
        outlier::Attempted,
    },
    state::{budget::RetryGuard, endpoint::EndpointGuard},
    telemetry::reason::Reason,
};

/// The head of an answer has come.
pub(super) struct Answered {
    pub(super) upstream: Upstream,
    /// Whether both sides now speak something else than HTTP.
    pub(super) is_upgrade: bool,
    /// Whether the backend took all of the request that was written to it.
    pub(super) is_listening: bool,
    /// Held until the answer is through.
    pub(super) _endpoint: EndpointGuard,
    pub(super) _retry: Option<RetryGuard>,
}

/// How an attempt failed.
enum Failed {
    /// By the backend; it may be tried again.
    Broken(Broken),
    /// By ourselves or the client; it is over.
    Rejected(Rejection),
}

impl From<Broken> for Failed {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

impl From<Rejection> for Failed {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

/// The time that a request has. It begins when the client has sent all of it: how long a client takes is not the backend's fault.
pub(super) struct Deadline {
    limit: Option<Duration>,
    at: Option<Instant>,
    /// When the client had sent all of its request.
    began: Option<Instant>,
}

impl Deadline {
    fn new(limit: Option<Duration>) -> Self {
        Self { limit, at: None, began: None }
    }

    /// Begins, unless it has begun.
    fn begin(&mut self, now: Instant) -> Option<Instant> {
        if self.began.is_none() {
            self.began = Some(now);
            self.at = self.limit.map(|limit| now + limit);
        }
        self.at
    }

    pub(super) fn time_left(&self, now: Instant) -> Duration {
        self.at.map_or(Duration::MAX, |at| at.saturating_duration_since(now))
    }
}

/// Makes attempts until one is answered with something to pass on.
pub(super) async fn until_answered(exchange: &Exchange<'_>, client: &mut Client, body: &mut RequestBody, progress: &mut Progress) -> Result<Answered, Rejection> {
    let mut tries = Tries::default();
    let mut deadline = Deadline::new(exchange.destination.policy.timeouts.request);
    let mut retry_guard: Option<RetryGuard> = None;
    if body.is_done() {
        deadline.begin(progress.began);
    }
    exchange.destination.budget.deposit(progress.began);
    loop {
        progress.attempts += 1;
        let attempt = attempt(exchange, client, body, &mut tries, &mut deadline, progress).await;
        let ended = match attempt {
            Ok(answered) => Ok(answered),
            Err(Failed::Broken(broken)) => Err(broken),
            Err(Failed::Rejected(rejection)) => return Err(rejection),
        };
        let failure = match &ended {
            Ok(answered) => retrying::status_failure(exchange, answered),
            Err(broken) => Some(broken.failure()),
        };
        let retry = failure.and_then(|failure| retrying::consider(exchange, client, body, failure, &mut tries, &deadline, &mut retry_guard));
        match (retry, ended) {
            (Some(retry), ended) => {
                if let Ok(answered) = ended {
                    retrying::discard(exchange, body, answered).await;
                }
                wait(client, body, retry).await?;
            }
            (None, Ok(answered)) => return Ok(Answered { _retry: retry_guard, ..answered }),
            (None, Err(broken)) => {
                let by = progress.endpoint.as_ref().map(|endpoint| endpoint.label.clone()).unwrap_or_default();
                return Err(Rejection::by(broken.reason(), by));
            }
        }
    }
}

async fn attempt(
    exchange: &Exchange<'_>,
    client: &mut Client,
    body: &mut RequestBody,
    tries: &mut Tries,
    deadline: &mut Deadline,
    progress: &mut Progress,
) -> Result<Answered, Failed> {
    let began = clock::now();
    let Picked { index, breaker, observation } = picking::pick(exchange, client, tries, retrying::is_idempotent(client), began)?;
    let endpoint = exchange.destination.backend.endpoints[index].clone();
    progress.endpoint = Some(endpoint.clone());
    tries.note(index);
    let guard = endpoint.enter();
    let made = connect_and_ask(exchange, client, body, deadline, progress, &endpoint).await;
    let now = clock::now();
    let metrics = &exchange.destination.backend.metrics;
    // What the client took to send its request is not the backend's slowness.
    let took = now.saturating_duration_since(deadline.began.unwrap_or(now).max(began));
    let seconds = took.as_secs_f64();
    let threshold = exchange.destination.policy.breaker.as_ref().map_or(Duration::MAX, |breaker| breaker.slow_call_duration);
    let settle = |outcome, attempted, leave_alone| {
        if let Some(breaker) = breaker {
            breaker.settle(outcome, Speed::of(took, threshold), now, fastrand::f64());
        }
        if let Some(observation) = observation {
            observation.settle(attempted, took, leave_alone, now);
        }
    };
    match made {
        Ok((upstream, head)) => {
            let status = upstream.session.get_status().map_or(0, |status| status.as_u16());
            let (outcome, counted) = classify::status(&exchange.destination.policy, status);
            let leave_alone = upstream.session.resp_header().and_then(|head| classify::retry_after(head, clock::wall));
            settle(outcome, classify::attempted(status), leave_alone);
            metrics.attempted(counted, seconds);
            if exchange.destination.backend.spec.warm_up.is_some()
                && let Some((started, age)) = upstream.session.resp_header().and_then(|head| headers::started_at(head, clock::wall()))
            {
                endpoint.advertised(started, age, now);
            }
            Ok(Answered { upstream, is_upgrade: head.is_upgrade, is_listening: head.is_listening, _endpoint: guard, _retry: None })
        }
        Err(Failed::Broken(broken)) => {
            settle(Outcome::Failure, Attempted::LocalOrigin, None);
            metrics.attempted(broken.outcome(), seconds);
            Err(Failed::Broken(broken))
        }
        Err(rejected) => {
            metrics.attempted(crate::telemetry::metrics::AttemptOutcome::Cancelled, seconds);
            Err(rejected)
        }
    }
}

/// What is known when a head has come.
struct Head {
    is_upgrade: bool,
    is_listening: bool,
}

async fn connect_and_ask(
    exchange: &Exchange<'_>,
    client: &mut Client,
    body: &mut RequestBody,
    deadline: &mut Deadline,
    progress: &Progress,
    endpoint: &Arc<crate::state::endpoint::EndpointState>,
) -> Result<(Upstream, Head), Failed> {
    let policy = &exchange.destination.policy;
    let is_repeatable = retrying::is_idempotent(client);
    let enforced = policy.limits.as_ref().filter(|limits| limits.mode == Mode::Enforce);
    let max_connections = enforced.map_or(u32::MAX, |limits| limits.max_connections);
    let now = clock::now();
    let until = [policy.timeouts.connect.map(|connect| now + connect), deadline.at].into_iter().flatten().min();
    let connecting = peer::connect(exchange.worker, endpoint, is_repeatable, max_connections, until, now);
    let mut upstream = connecting.await.map_err(|none| match none {
        NoConnection::Failed => Failed::Broken(Broken::ConnectFailed),
        NoConnection::TimedOut if deadline.time_left(clock::now()).is_zero() => Broken::TimedOut { is_request: true }.into(),
        NoConnection::TimedOut => Failed::Broken(Broken::ConnectTimeout),
        NoConnection::TooMany => Rejection::by(Reason::ConnectionLimit, exchange.destination.backend.spec.name.clone()).into(),
    })?;
    let internal = |_| Failed::Rejected(Rejection::of(Reason::InternalError));
    let head = headers::upstream(exchange, client, endpoint.authority(), progress.attempts).map_err(internal)?;
    // Writing only queues, so that it fails only on a head that cannot be written.
    upstream.session.write_request_header(head).await.map_err(internal)?;
    for chunk in body.kept() {
        write(&mut upstream, Some(chunk), false).await.map_err(internal)?;
    }
    if body.is_done() {
        write(&mut upstream, None, true).await.map_err(internal)?;
    }
    let head = await_head(exchange, client, body, deadline, &mut upstream).await?;
    Ok((upstream, head))
}

/// Sends the rest of the request and waits for the head of the answer, whichever comes first.
async fn await_head(exchange: &Exchange<'_>, client: &mut Client, body: &mut RequestBody, deadline: &mut Deadline, upstream: &mut Upstream) -> Result<Head, Failed> {
    let timeouts = &exchange.destination.policy.timeouts;
    let mut is_listening = true;
    let limit = |deadline: &mut Deadline, is_done: bool| {
        let now = clock::now();
        if !is_done {
            return timeouts.stream_idle.map(|idle| now + idle);
        }
        let one = timeouts.backend_request.map(|one| now + one);
        [one, deadline.begin(now)].into_iter().flatten().min()
    };
    let mut until = limit(deadline, body.is_done());
    loop {
        let event = {
            let events = async {
                tokio::select! {
                    biased;
                    read = upstream.session.read_response() => Event::Answer(read),
                    pushed = upstream.wire.push(), if is_listening && !upstream.wire.is_pushed() => Event::Pushed(pushed),
                    read = client.session.read_body_or_idle(body.is_done()), if body.is_done() || (is_listening && upstream.wire.is_pushed()) => Event::Client(read),
                }
            };
            match clock::until(until, events).await {
                Ok(event) => event,
                Err(clock::Elapsed) => return Err(timed_out(deadline, body, upstream)),
            }
        };
        match event {
            Event::Answer(Ok(_)) => {
                let Some(head) = upstream.session.resp_header() else { return Err(Broken::Protocol.into()) };
                if head.status == 101 {
                    let fits = is_listening && upstream.session.was_upgraded() && headers::wanted_upgrade(client).is_some_and(|wanted| is_agreed(wanted, head));
                    return if fits { Ok(Head { is_upgrade: true, is_listening }) } else { Err(Broken::Protocol.into()) };
                }
                if !head.status.is_informational() {
                    return Ok(Head { is_upgrade: false, is_listening });
                }
                let head = head.clone();
                pass_on_interim(exchange, client, &head).await?;
            }
            Event::Answer(Err(error)) if matches!(error.etype, ErrorType::InvalidHTTPHeader) => return Err(Broken::Protocol.into()),
            Event::Answer(Err(_)) => return Err(Broken::Reset { has_sent: upstream.has_sent() }.into()),
            Event::Pushed(Ok(())) => until = limit(deadline, body.is_done()),
            // It takes no more; it may have answered before it closed.
            Event::Pushed(Err(_)) => is_listening = false,
            Event::Client(read) => {
                let chunk = read.map_err(|error| client_failure(&error))?;
                // The session tells of the end with the last chunk, or after it.
                body.note(chunk.as_ref(), chunk.is_none() || client.session.is_body_done())?;
                write(upstream, chunk.as_ref(), body.is_done()).await.map_err(|_| Rejection::of(Reason::InternalError))?;
                until = limit(deadline, body.is_done());
            }
        }
    }
}

/// Queues a piece of the request, and its end.
pub(super) async fn write(upstream: &mut Upstream, chunk: Option<&bytes::Bytes>, is_last: bool) -> pingora::Result<()> {
    // A session may read nothing at all, as when a chunk's size came without its bytes; written as a chunk that would be the end.
    if let Some(chunk) = chunk.filter(|chunk| !chunk.is_empty()) {
        upstream.session.write_body(chunk).await?;
    }
    if is_last {
        upstream.session.finish_body().await?;
    }
    Ok(())
}

enum Event {
    Answer(pingora::Result<usize>),
    Pushed(std::io::Result<()>),
    Client(pingora::Result<Option<bytes::Bytes>>),
}

fn timed_out(deadline: &Deadline, body: &RequestBody, upstream: &Upstream) -> Failed {
    if body.is_done() || !upstream.wire.is_pushed() {
        let is_request = deadline.time_left(clock::now()).is_zero();
        return Broken::TimedOut { is_request }.into();
    }
    Rejection { is_fatal: true, ..Rejection::of(Reason::StreamIdleTimeout) }.into()
}

/// What it means that nothing more can be read from a client.
pub(super) fn client_failure(error: &pingora::Error) -> Rejection {
    let reason = match error.etype {
        ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError => Reason::ClientClosed,
        _ => Reason::BadRequest,
    };
    Rejection { is_fatal: true, ..Rejection::of(reason) }
}

/// Whether a 101 names what was asked for.
fn is_agreed(wanted: &str, answer: &ResponseHeader) -> bool {
    let given = answer.headers.get(http::header::UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    !given.is_empty() && wanted.split(',').any(|wanted| wanted.trim().eq_ignore_ascii_case(given.trim()))
}

/// Passes an interim answer on (RFC 9110 section 15.2); a client of HTTP/1.0 would not understand it.
async fn pass_on_interim(exchange: &Exchange<'_>, client: &mut Client, head: &ResponseHeader) -> Result<(), Rejection> {
    if client.head().version != http::Version::HTTP_11 {
        return Ok(());
    }
    let gone = || Rejection { is_fatal: true, ..Rejection::of(Reason::ClientClosed) };
    let head = headers::downstream(exchange, client, head, false).map_err(|_| Rejection::of(Reason::InternalError))?;
    client.session.write_response_header(head).await.map_err(|_| gone())?;
    let idle = exchange.destination.policy.timeouts.stream_idle;
    clock::within(idle, client.wire.push()).await.map_err(|_| gone())?.map_err(|_| gone())
}

/// Waits before a retry, and notices if the client leaves meanwhile.
async fn wait(client: &mut Client, body: &RequestBody, wait: Duration) -> Result<(), Rejection> {
    if wait.is_zero() {
        return Ok(());
    }
    tokio::select! {
        biased;
        () = clock::sleep(wait) => Ok(()),
        read = client.session.read_body_or_idle(true), if body.is_done() => match read {
            Ok(_) => Ok(()),
            Err(error) => Err(client_failure(&error)),
        },
    }
}
