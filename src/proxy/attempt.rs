//! Attempts at a backend, until there is an answer to pass on, or none to be had.
//!
//! One attempt picks an endpoint, asks its breaker, and asks the endpoint (`asking`). How it ended settles the breaker's permit; an
//! attempt that is given up because the client left gives its permit back unjudged, and one of gRPC is judged by its trailers.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{
    asking,
    classify::{self, Broken, Judgement},
    client::Client,
    deadline::Deadline,
    grpc, headers,
    picking::{self, Picked},
    rejection::Rejection,
    request_body::RequestBody,
    retrying::{self, Tries},
    serve::{Exchange, Progress},
    settlement::{self, Settlement},
    upstream::Upstream,
};
use crate::{
    clock,
    state::{
        budget::RetryGuard,
        endpoint::{EndpointGuard, EndpointState},
    },
    telemetry::reason::Reason,
};

/// The head of an answer has come.
pub(super) struct Answered {
    pub(super) upstream: Upstream,
    /// Whether both sides now speak something else than HTTP.
    pub(super) is_upgrade: bool,
    /// Whether the backend took all of the request that was written to it.
    pub(super) is_listening: bool,
    /// What was read of its body already.
    pub(super) first: Option<Bytes>,
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

/// How an attempt failed.
pub(super) enum Failed {
    /// By the backend; it may be tried again.
    Broken(Broken),
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

/// Makes attempts until one is answered with something to pass on.
pub(super) async fn until_answered(exchange: &Exchange<'_>, client: &mut Client, body: &mut RequestBody, progress: &mut Progress) -> Result<Answered, Rejection> {
    let mut tries = Tries::default();
    let mut deadline = Deadline::new(exchange.destination.policy.timeouts.request, &client.asked(), progress.began);
    let mut retry_guard: Option<RetryGuard> = None;
    if body.is_done() {
        deadline.begin(progress.began);
    }
    if deadline.time_left(progress.began).is_zero() {
        // Whoever asked has given up by now.
        return Err(Rejection::of(Reason::RequestTimeout));
    }
    exchange.destination.budget.deposit(progress.began);
    loop {
        progress.attempts += 1;
        let tried = tries.count();
        let attempt = attempt(exchange, client, body, &mut tries, &mut deadline, progress).await;
        let ended = match attempt {
            Ok(answered) => Ok(answered),
            Err(Failed::Broken(broken)) => Err(broken),
            // Another may have room; one that was picked for want of another has not.
            Err(Failed::Full) if tries.count() > tried && tries.count() < exchange.destination.backend.endpoints.len() => {
                progress.attempts -= 1;
                continue;
            }
            Err(Failed::Full) => return Err(full(exchange, progress)),
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
    let Picked { index, breaker, observation } = picking::pick(exchange, &client.asked(), tries, began)?;
    let backend = &exchange.destination.backend;
    let endpoint = backend.endpoints[index].clone();
    progress.endpoint = Some(endpoint.clone());
    tries.note(index);
    let guard = endpoint.enter();
    let mut settlement = Settlement::new(exchange.destination, breaker, observation);
    let made = match asking::ask(exchange, client, body, deadline, progress, &endpoint).await {
        Ok((mut upstream, head)) if retrying::may_repeat_by_trailers(exchange, client, body, tries) => {
            asking::first_piece(exchange, client, deadline, &mut upstream).await.map(|first| (upstream, head, first))
        }
        made => made.map(|(upstream, head)| (upstream, head, None)),
    };
    let now = clock::now();
    // What the client took to send its request is not the backend's slowness.
    settlement.answered(now.saturating_duration_since(deadline.began().unwrap_or(now).max(began)));
    match made {
        Ok((upstream, head, first)) => {
            let (grpc_status, judgement) = judge(exchange, client, &upstream);
            let leave_alone = upstream.head().and_then(|head| classify::retry_after(head, clock::wall));
            let unsettled = match judgement {
                Some(judgement) => {
                    settlement.settle(judgement, leave_alone, now);
                    None
                }
                None => {
                    settlement.has_begun(now);
                    Some(settlement)
                }
            };
            note_start(exchange, &endpoint, &upstream, now);
            let until = deadline.of_call();
            let asking::Head { is_upgrade, is_listening } = head;
            Ok(Answered { upstream, is_upgrade, is_listening, first, grpc_status, until, unsettled, in_flight: Some(guard), _retry: None })
        }
        Err(Failed::Broken(broken)) => {
            if deadline.is_clients_own(now) {
                // How little time a client gives is no failure of the backend.
                settlement.give_up(now);
            } else {
                settlement.settle(settlement::cut_off(broken.outcome()), None, now);
            }
            Err(Failed::Broken(broken))
        }
        // Nothing was asked, so there is nothing to tell; its guards settle as cancelled.
        Err(Failed::Full) => Err(Failed::Full),
        Err(rejected) => {
            settlement.give_up(now);
            Err(rejected)
        }
    }
}

/// Every endpoint has as many connections as it may, and all are busy.
fn full(exchange: &Exchange<'_>, progress: &Progress) -> Rejection {
    let by = progress.endpoint.as_ref().map_or_else(|| exchange.destination.backend.spec.name.clone(), |endpoint| endpoint.label.clone());
    Rejection::by(Reason::ConnectionLimit, by).after(Duration::from_secs(1))
}

/// What the head of an answer says about the attempt; of gRPC it may say nothing yet.
fn judge(exchange: &Exchange<'_>, client: &Client, upstream: &Upstream) -> (Option<u8>, Option<Judgement>) {
    let Some(head) = upstream.head() else { return (None, None) };
    let status = head.status.as_u16();
    if !client.is_grpc() {
        return (None, Some(classify::status(&exchange.destination.policy, status)));
    }
    let in_trailers = || upstream.trailers().and_then(grpc::status);
    let stated = grpc::status(&head.headers).or_else(in_trailers).or_else(|| (status != 200).then(|| grpc::of_http(status)));
    (stated, stated.map(grpc::judge))
}

fn note_start(exchange: &Exchange<'_>, endpoint: &EndpointState, upstream: &Upstream, now: Instant) {
    if exchange.destination.backend.spec.warm_up.is_some()
        && let Some((started, age)) = upstream.head().and_then(|head| headers::started_at(head, clock::wall()))
    {
        endpoint.advertised(started, age, now);
    }
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
    Rejection { is_fatal: true, ..Rejection::of(reason) }
}
