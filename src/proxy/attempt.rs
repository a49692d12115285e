//! Attempts at a backend, until there is an answer to pass on, or none to be had.
//!
//! One attempt picks an endpoint, asks its breaker, and asks the endpoint (`asking`). How it ended settles the breaker's permit; an
//! attempt that is given up because the client left gives its permit back unjudged, and one of gRPC is judged by its trailers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    asked::Asked,
    asker::Asker,
    asking,
    classify::{self, Broken, Judgement},
    client::Client,
    deadline::Deadline,
    grpc, hedging,
    parting::Parting,
    picking::{self, Picked},
    record::Progress,
    rejection::{Rejection, SOON},
    repicking,
    request_body::RequestBody,
    retrying::{self, Tries},
    serve::Exchange,
    settlement::{self, Settlement},
    signs,
    stale::Capture,
    upstream::Upstream,
};
use crate::{
    clock,
    state::{
        breaker::BreakerGuard,
        budget::RetryGuard,
        endpoint::{EndpointGuard, EndpointState},
        limit::LimitGuard,
        outlier::Observation,
    },
    telemetry::{decisions::Step, reason::Reason},
};

/// The head of an answer has come.
pub(super) struct Answered {
    pub(super) upstream: Upstream,
    /// Whether both sides now speak something else than HTTP.
    pub(super) is_upgrade: bool,
    /// Whether it says that the request was not looked at.
    pub(super) is_unprocessed: bool,
    /// Whether the backend took all of the request that was written to it.
    pub(super) is_listening: bool,
    /// What was read of its body already.
    pub(super) first: Option<Bytes>,
    /// How it may be ended when this instance leaves.
    pub(super) parting: Option<Parting>,
    /// What is kept of it for the time when there is none.
    pub(super) capture: Option<Box<Capture>>,
    /// The status of gRPC, if it is known.
    pub(super) grpc_status: Option<u8>,
    /// Until when the client itself waits, if it has said so.
    pub(super) until: Option<Instant>,
    /// What the trailers will settle.
    pub(super) unsettled: Option<Settlement>,
    /// Held until the answer is through.
    pub(super) in_flight: Option<EndpointGuard>,
    pub(super) _retry: Option<RetryGuard>,
}

impl Answered {
    /// What was answered, for who reads why.
    pub(super) fn status_in_words(&self) -> String {
        match self.grpc_status {
            Some(status) => format!("grpc-status {status}"),
            None => self
                .upstream
                .head()
                .map(|head| head.status.as_u16().to_string())
                .unwrap_or_default(),
        }
    }
}

/// How an attempt failed.
pub(super) enum Failed {
    /// By the backend; it may be tried again.
    Broken(Broken),
    /// Not by the backend: it says that it is leaving or new, and did not look at the request. What it says.
    Unprocessed(Box<Answered>),
    /// All connections that the endpoint may have are busy; another may do.
    Full,
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

/// Asks a backend in the place that is held, whose limit learns from it.
pub(super) async fn in_place(
    exchange: &Exchange<'_>,
    client: &mut Client,
    body: &mut RequestBody,
    progress: &mut Progress,
    place: &mut Option<LimitGuard>,
    began: Instant,
) -> Result<Answered, Rejection> {
    let learner = place.as_ref().and_then(LimitGuard::learner);
    let answered = until_answered(
        &exchange.learning(learner.as_ref()),
        client,
        body,
        progress,
        began,
    )
    .await;
    if let Some(place) = place {
        place.answer_begins();
    }
    answered
}

/// Makes attempts until one is answered with something to pass on. The policy's time begins at `began`, or when the client has sent all.
async fn until_answered(
    exchange: &Exchange<'_>,
    client: &mut Client,
    body: &mut RequestBody,
    progress: &mut Progress,
    began: Instant,
) -> Result<Answered, Rejection> {
    let mut deadline = Deadline::new(
        exchange.destination.policy.timeouts.request,
        &client.asked(),
        progress.began,
    );
    if body.is_done() {
        deadline.begin(progress.complete.unwrap_or(progress.began), began);
    }
    let answered = attempts(exchange, client, body, progress, &mut deadline).await;
    progress.complete = progress.complete.or(deadline.began());
    answered
}

async fn attempts(
    exchange: &Exchange<'_>,
    client: &mut Client,
    body: &mut RequestBody,
    progress: &mut Progress,
    deadline: &mut Deadline,
) -> Result<Answered, Rejection> {
    let mut tries = Tries::default();
    let mut retry_guard: Option<RetryGuard> = None;
    exchange.destination.budget.deposit(progress.began);
    if let Some(plan) = hedging::plan(exchange, client, body, progress.began) {
        // Boxed, as all that few requests need: it would make the future of every request larger.
        return Box::pin(hedging::race(exchange, client, &plan, *deadline, progress)).await;
    }
    loop {
        let tried = tries.count();
        let asked = client.asked();
        let attempt = Attempt::begin(exchange, &asked, &mut tries, deadline, progress)?;
        let attempt = Attempt {
            looks_ahead: retrying::may_repeat_by_trailers(exchange, &asked, &tries),
            ..attempt
        };
        let began = attempt.began;
        let made = attempt
            .make(&mut Asker::Client(client, body), deadline)
            .await;
        let ended = match repicking::consider(exchange, body, &tries, tried, progress, made).await {
            None => continue,
            Some(Ok(answered)) => Ok(answered),
            Some(Err(Failed::Unprocessed(answered))) => Ok(*answered),
            Some(Err(Failed::Broken(broken))) => Err(broken),
            // Another may have room; one that was picked for want of another has not.
            Some(Err(Failed::Full)) if repicking::has_another(exchange, &tries, tried) => {
                progress.attempts -= 1;
                continue;
            }
            Some(Err(Failed::Full)) => return Err(full(exchange, progress)),
            Some(Err(Failed::Rejected(rejection))) => return Err(rejection),
        };
        let failure = match &ended {
            Ok(answered) => retrying::status_failure(exchange, answered),
            Err(broken) => Some(broken.failure()),
        };
        if failure.is_some() {
            note_failure(exchange, progress, &ended, began);
        }
        let retry = failure.and_then(|failure| {
            retrying::consider(
                exchange,
                client,
                body,
                failure,
                &mut tries,
                deadline,
                &mut retry_guard,
            )
        });
        match (retry, ended) {
            (Some(retry), ended) => {
                if let Ok(answered) = ended {
                    retrying::discard(exchange, body.is_done(), answered).await;
                }
                wait(client, body, retry).await?;
            }
            (None, Ok(answered)) => {
                if tries.number() == 1 {
                    hedging::note_shadow(exchange, client, body, began);
                }
                return Ok(Answered {
                    _retry: retry_guard,
                    ..answered
                });
            }
            (None, Err(broken)) => return Err(failed(progress, broken)),
        }
    }
}

fn note_failure(
    exchange: &Exchange<'_>,
    progress: &Progress,
    ended: &Result<Answered, Broken>,
    began: Instant,
) {
    let how = ended.as_ref().map_or_else(
        |broken| broken.reason().token().to_owned(),
        Answered::status_in_words,
    );
    exchange.notes.push(Step::Failed {
        attempt: progress.attempts,
        endpoint: progress.endpoint_label(),
        how,
        took: clock::now().saturating_duration_since(began),
    });
}

/// How a request ends whose last attempt failed.
pub(super) fn failed(progress: &Progress, broken: Broken) -> Rejection {
    Rejection::by(broken.reason(), progress.endpoint_label())
}

/// One attempt at one endpoint.
pub(super) struct Attempt<'e> {
    exchange: &'e Exchange<'e>,
    pub(super) endpoint: Arc<EndpointState>,
    breaker: Option<BreakerGuard>,
    observation: Option<Observation>,
    pub(super) began: Instant,
    /// Which one of those that the backend can have seen, from 1.
    number: u32,
    /// Whether a call of gRPC is waited for up to its first message, because it may be tried again if it ends before.
    looks_ahead: bool,
}

impl<'e> Attempt<'e> {
    /// Picks an endpoint, and gets the right to ask it.
    pub(super) fn begin(
        exchange: &'e Exchange<'e>,
        asked: &Asked<'_>,
        tries: &mut Tries,
        deadline: &Deadline,
        progress: &mut Progress,
    ) -> Result<Self, Rejection> {
        let began = clock::now();
        if deadline.time_left(began).is_zero() {
            // Whoever asked has given up by now.
            return Err(Rejection::of(Reason::RequestTimeout));
        }
        progress.attempts += 1;
        let Picked {
            index,
            breaker,
            observation,
        } = picking::pick(exchange, asked, tries, began)?;
        let endpoint = exchange.destination.backend.endpoints[index].clone();
        progress.endpoint = Some(endpoint.clone());
        tries.note(index);
        Ok(Self {
            exchange,
            endpoint,
            breaker,
            observation,
            began,
            number: tries.number(),
            looks_ahead: false,
        })
    }

    /// Asks the endpoint, and tells everybody who wants to know how it went.
    pub(super) async fn make(
        self,
        asker: &mut Asker<'_>,
        deadline: &mut Deadline,
    ) -> Result<Answered, Failed> {
        let Self {
            exchange,
            endpoint,
            breaker,
            observation,
            began,
            number,
            looks_ahead,
        } = self;
        let guard = endpoint.enter();
        let mut settlement = Settlement::new(exchange, breaker, observation, began);
        let made = match asking::ask(exchange, asker, deadline, number, &endpoint).await {
            Ok((mut upstream, head)) if looks_ahead && asker.is_whole() => Box::pin(
                asking::first_piece(exchange, asker, deadline, &mut upstream),
            )
            .await
            .map(|first| (upstream, head, first)),
            made => made.map(|(upstream, head)| (upstream, head, None)),
        };
        let now = clock::now();
        // What the client took to send its request is not the backend's slowness; and while it still sends, nobody knows how long the backend takes.
        if let Some(complete) = deadline.began() {
            settlement.answered(now.saturating_duration_since(complete.max(began)));
        }
        match made {
            Ok((upstream, head, first)) => {
                let told = upstream.head();
                let is_unprocessed = told.is_some_and(|told| {
                    signs::note(exchange, &endpoint, &told.headers, now)
                        && signs::is_unprocessed(told.status, &told.headers)
                });
                let (grpc_status, judgement) = judge(exchange, &asker.asked(), &upstream);
                let leave_alone = upstream
                    .head()
                    .and_then(|head| classify::retry_after(head, clock::wall));
                let unsettled = match judgement {
                    // Nothing was asked, so there is nothing to tell.
                    _ if is_unprocessed => {
                        settlement.forget();
                        None
                    }
                    Some(judgement) => {
                        settlement.settle(judgement, leave_alone, now);
                        None
                    }
                    None => {
                        settlement.has_begun(now);
                        Some(settlement)
                    }
                };
                let until = deadline.of_call();
                let asking::Head {
                    is_upgrade,
                    is_listening,
                } = head;
                let answered = Answered {
                    upstream,
                    is_upgrade,
                    is_unprocessed,
                    is_listening,
                    first,
                    parting: None,
                    capture: None,
                    grpc_status,
                    until,
                    unsettled,
                    in_flight: Some(guard),
                    _retry: None,
                };
                if is_unprocessed {
                    Err(Failed::Unprocessed(Box::new(answered)))
                } else {
                    Ok(answered)
                }
            }
            Err(failed) => {
                let of_attempt = exchange
                    .destination
                    .policy
                    .timeouts
                    .backend_request
                    .map(|one| deadline.began().unwrap_or(now).max(began) + one);
                tell_failure(
                    settlement,
                    &failed,
                    &endpoint,
                    deadline.is_clients_own(of_attempt, now),
                    now,
                );
                Err(failed)
            }
        }
    }
}

fn tell_failure(
    settlement: Settlement,
    failed: &Failed,
    endpoint: &EndpointState,
    is_clients_own: bool,
    now: Instant,
) {
    match failed {
        // It has said that it leaves, and is gone: that is no failure.
        Failed::Broken(broken) if broken.is_unprocessed() && endpoint.alone_until().is_some() => {
            settlement.forget()
        }
        // How little time a client gives is no failure of the backend.
        Failed::Broken(_) if is_clients_own => settlement.give_up(now),
        Failed::Broken(broken) => {
            settlement.settle(settlement::cut_off(broken.outcome()), None, now)
        }
        // Nothing was asked, so there is nothing to tell; its guards settle as cancelled.
        Failed::Full => settlement.forget(),
        Failed::Rejected(_) | Failed::Unprocessed(_) => settlement.give_up(now),
    }
}

/// Every endpoint has as many connections as it may, and all are busy.
pub(super) fn full(exchange: &Exchange<'_>, progress: &Progress) -> Rejection {
    let by = progress.endpoint.as_ref().map_or_else(
        || exchange.destination.backend.spec.name.clone(),
        |endpoint| endpoint.label.clone(),
    );
    Rejection::by(Reason::ConnectionLimit, by).after(SOON)
}

/// What the head of an answer says about the attempt; of gRPC it may say nothing yet.
fn judge(
    exchange: &Exchange<'_>,
    asked: &Asked<'_>,
    upstream: &Upstream,
) -> (Option<u8>, Option<Judgement>) {
    let Some(head) = upstream.head() else {
        return (None, None);
    };
    let status = head.status.as_u16();
    if !asked.is_grpc {
        return (
            None,
            Some(classify::status(&exchange.destination.policy, status)),
        );
    }
    let in_trailers = || upstream.trailers().and_then(grpc::status);
    let stated = grpc::status(&head.headers)
        .or_else(in_trailers)
        .or_else(|| (status != 200).then(|| grpc::of_http(status)));
    (stated, stated.map(grpc::judge))
}

/// Waits before a retry, and notices if the client leaves meanwhile.
async fn wait(client: &mut Client, body: &RequestBody, wait: Duration) -> Result<(), Rejection> {
    if wait.is_zero() {
        return Ok(());
    }
    tokio::select! {
        biased;
        () = clock::sleep(wait) => Ok(()),
        reason = client.gone(), if body.is_done() => Err(gone(reason)),
    }
}

/// A client that left, or sends what cannot be understood.
pub(super) fn gone(reason: Reason) -> Rejection {
    Rejection {
        is_fatal: true,
        ..Rejection::of(reason)
    }
}
