//! Asking more than one endpoint at once, and taking the answer that comes first.
//!
//! Each request after the first is taken out of the retry budget. Those that are not needed are dropped: their connections close, their streams are
//! reset, and their guards settle as cancelled. What is hedged is not retried besides; a failure makes the next request go out at once.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use super::{
    asker::{Asker, Kept},
    attempt::{Answered, Attempt, Failed, failed, full, gone},
    client::Client,
    deadline::Deadline,
    headers,
    record::Progress,
    rejection::Rejection,
    repicking,
    request_body::RequestBody,
    retrying::Tries,
    serve::Exchange,
};
use crate::{
    clock,
    policy::snapshot::HedgingSpec,
    resilience::Mode,
    state::{budget::RetryGuard, endpoint::EndpointState, hedge::HedgeState},
    telemetry::{decisions::Step, metrics::Hedged},
};

/// A request that is hedged.
pub(super) struct Plan<'e> {
    spec: &'e HedgingSpec,
    state: &'e HedgeState,
    delay: Duration,
    kept: Kept,
}

/// Whether a request is hedged: the policy acts, it is idempotent, has no body, and it is known how late is late.
pub(super) fn plan<'e>(
    exchange: &'e Exchange<'_>,
    client: &Client,
    body: &RequestBody,
    now: Instant,
) -> Option<Plan<'e>> {
    let spec = exchange
        .destination
        .policy
        .hedging
        .as_ref()
        .filter(|spec| spec.mode == Mode::Enforce)?;
    let state = exchange.destination.hedge.as_deref()?;
    if !is_fit(client, body) {
        return None;
    }
    Some(Plan {
        spec,
        state,
        delay: state.delay(now)?,
        kept: Kept::of(client, body)?,
    })
}

/// Whether a request may be asked twice at once.
fn is_fit(client: &Client, body: &RequestBody) -> bool {
    let asked = client.asked();
    asked.is_idempotent()
        && body.is_done()
        && body.received() == 0
        && asked.attempt() == 1
        && headers::wanted_upgrade(&asked).is_none()
}

/// Counts what shadow mode would have asked again, now that an attempt that began then was answered.
pub(super) fn note_shadow(
    exchange: &Exchange<'_>,
    client: &Client,
    body: &RequestBody,
    began: Instant,
) {
    let destination = exchange.destination;
    let (Some(spec), Some(state)) = (&destination.policy.hedging, &destination.hedge) else {
        return;
    };
    if spec.mode != Mode::Shadow || !is_fit(client, body) {
        return;
    }
    let now = clock::now();
    if state
        .delay(now)
        .is_some_and(|delay| now.saturating_duration_since(began) > delay)
    {
        destination.backend.metrics.hedged(Hedged::Shadow);
    }
}

type Made<'r> = Pin<Box<dyn Future<Output = Result<Answered, Failed>> + Send + 'r>>;

/// A request that is out.
struct Runner<'r> {
    endpoint: Arc<EndpointState>,
    began: Instant,
    /// Counted from 1.
    number: u32,
    is_first: bool,
    made: Made<'r>,
}

/// What came of one that is no answer to pass on while there may be another.
enum Poor {
    Answer(Arc<EndpointState>, Box<Answered>),
    Failed(Arc<EndpointState>, Failed),
    /// None could be made.
    NotMade(Rejection),
}

/// How far a race is.
#[derive(Default)]
struct Race {
    tries: Tries,
    guard: Option<RetryGuard>,
    poor: Option<Poor>,
    /// Requests that count.
    sent: u32,
    /// Whether no more are to be sent.
    is_over: bool,
    /// How many endpoints had been asked before the last one.
    tried: usize,
    /// The next one goes out in the place of one that was not looked at; whether that was the first.
    instead_of: Option<bool>,
}

/// Asks until there is an answer to pass on, or none to be had.
pub(super) async fn race(
    exchange: &Exchange<'_>,
    client: &mut Client,
    plan: &Plan<'_>,
    deadline: Deadline,
    progress: &mut Progress,
) -> Result<Answered, Rejection> {
    let mut race = Race::default();
    let mut runners: Vec<Runner<'_>> = Vec::with_capacity(2);
    let mut is_due = true;
    loop {
        let may_ask = !race.is_over && race.sent < plan.spec.config.max_attempts.get();
        if is_due && may_ask {
            is_due = false;
            runners.extend(race.ask(exchange, plan, deadline, progress));
            continue;
        }
        if runners.is_empty() {
            return give(exchange, race.poor, race.guard, progress);
        }
        let next = async {
            if may_ask {
                clock::sleep(plan.delay).await
            } else {
                std::future::pending().await
            }
        };
        let (place, made) = tokio::select! {
            biased;
            done = first_done(&mut runners) => done,
            () = next => {
                is_due = true;
                continue;
            }
            reason = client.gone() => return Err(gone(reason)),
        };
        let runner = runners.swap_remove(place);
        if let Some(how) = failure(plan.spec, &made) {
            let took = clock::now().saturating_duration_since(runner.began);
            exchange.notes.push(Step::Failed {
                attempt: runner.number,
                endpoint: runner.endpoint.label.clone(),
                how,
                took,
            });
        }
        match made {
            Ok(answered) if !is_poor(plan.spec, &answered) => {
                won(exchange, plan, &runner, &runners);
                progress.endpoint = Some(runner.endpoint);
                return Ok(Answered {
                    _retry: race.guard,
                    ..answered
                });
            }
            Err(Failed::Rejected(rejection)) if rejection.is_fatal => return Err(rejection),
            Err(Failed::Unprocessed(answered)) => race.not_looked_at(exchange, runner, answered),
            Ok(answered) => race.poor = Some(Poor::Answer(runner.endpoint, Box::new(answered))),
            Err(failed) if matches!(race.poor, Some(Poor::Answer(..))) => drop(failed),
            Err(failed) => race.poor = Some(Poor::Failed(runner.endpoint, failed)),
        }
        is_due = true;
    }
}

impl Race {
    /// Sends one more, if that can be.
    fn ask<'r>(
        &mut self,
        exchange: &'r Exchange<'r>,
        plan: &'r Plan<'_>,
        deadline: Deadline,
        progress: &mut Progress,
    ) -> Option<Runner<'r>> {
        self.tried = self.tries.count();
        let asked = ask(
            exchange,
            plan,
            deadline,
            &mut self.tries,
            self.instead_of.take(),
            &mut self.guard,
            progress,
        );
        match asked {
            Ok(Some(runner)) => {
                self.sent += 1;
                return Some(runner);
            }
            Ok(None) => {}
            Err(rejection) => _ = self.poor.get_or_insert(Poor::NotMade(rejection)),
        }
        self.is_over = true;
        None
    }

    /// One was not looked at. It does not count, as long as there are endpoints that were not asked.
    fn not_looked_at(
        &mut self,
        exchange: &Exchange<'_>,
        runner: Runner<'_>,
        answered: Box<Answered>,
    ) {
        self.poor
            .get_or_insert(Poor::Answer(runner.endpoint, answered));
        if repicking::has_another(exchange, &self.tries, self.tried) {
            self.sent -= 1;
            self.instead_of = Some(runner.is_first);
            exchange.destination.backend.metrics.repicked.increment(1);
        }
    }
}

/// One has its answer; the others took at least as long as they were waited for.
fn won(exchange: &Exchange<'_>, plan: &Plan<'_>, winner: &Runner<'_>, losers: &[Runner<'_>]) {
    if !winner.is_first {
        exchange.destination.backend.metrics.hedged(Hedged::Won);
        exchange.notes.push(Step::HedgeWon {
            endpoint: winner.endpoint.label.clone(),
        });
    }
    let now = clock::now();
    losers.iter().for_each(|late| {
        plan.state
            .note(now.saturating_duration_since(late.began), now)
    });
}

/// Sends one more; nothing if the budget has none.
fn ask<'r>(
    exchange: &'r Exchange<'r>,
    plan: &'r Plan<'_>,
    mut deadline: Deadline,
    tries: &mut Tries,
    instead_of: Option<bool>,
    guard: &mut Option<RetryGuard>,
    progress: &mut Progress,
) -> Result<Option<Runner<'r>>, Rejection> {
    let metrics = &exchange.destination.backend.metrics;
    let is_first = instead_of.unwrap_or_else(|| tries.is_first());
    if !is_first
        && instead_of.is_none()
        && exchange
            .destination
            .withdraw_retry(guard, clock::now())
            .is_err()
    {
        metrics.hedged(Hedged::NoBudget);
        exchange.notes.push(Step::NotRetried {
            why: "the retry budget has no room for a second request",
            numbers: String::new(),
        });
        return Ok(None);
    }
    if !is_first && instead_of.is_none() {
        tries.hedge();
    }
    let attempt = Attempt::begin(exchange, &plan.kept.asked(), tries, &deadline, progress)?;
    if !is_first && instead_of.is_none() {
        metrics.hedged(Hedged::Sent);
        exchange.notes.push(Step::Hedged {
            attempt: progress.attempts,
            endpoint: attempt.endpoint.label.clone(),
            delay: plan.delay,
        });
    }
    let (endpoint, began) = (attempt.endpoint.clone(), attempt.began);
    let made = Box::pin(async move {
        attempt
            .make(&mut Asker::Kept(&plan.kept), &mut deadline)
            .await
    });
    Ok(Some(Runner {
        endpoint,
        began,
        number: progress.attempts,
        is_first,
        made,
    }))
}

async fn first_done(runners: &mut [Runner<'_>]) -> (usize, Result<Answered, Failed>) {
    std::future::poll_fn(|context| {
        let done = runners.iter_mut().enumerate().find_map(|(index, runner)| {
            match runner.made.as_mut().poll(context) {
                Poll::Ready(made) => Some((index, made)),
                Poll::Pending => None,
            }
        });
        done.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// How one failed that is no answer to pass on, if it did.
fn failure(spec: &HedgingSpec, made: &Result<Answered, Failed>) -> Option<String> {
    match made {
        Ok(answered) => is_poor(spec, answered).then(|| answered.status_in_words()),
        Err(Failed::Broken(broken)) => Some(broken.reason().token().to_owned()),
        Err(Failed::Unprocessed(answered)) => Some(format!(
            "{}: it is leaving or new",
            answered.status_in_words()
        )),
        Err(Failed::Full) => Some("all its connections are busy".to_owned()),
        Err(Failed::Rejected(rejection)) => Some(rejection.reason.token().to_owned()),
    }
}

fn is_poor(spec: &HedgingSpec, answered: &Answered) -> bool {
    answered
        .upstream
        .head()
        .is_some_and(|head| spec.non_fatal.contains(head.status.as_u16()))
}

/// All have failed: an answer of the app's is better than none.
fn give(
    exchange: &Exchange<'_>,
    poor: Option<Poor>,
    guard: Option<RetryGuard>,
    progress: &mut Progress,
) -> Result<Answered, Rejection> {
    match poor {
        Some(Poor::Answer(endpoint, answered)) => {
            progress.endpoint = Some(endpoint);
            Ok(Answered {
                _retry: guard,
                ..*answered
            })
        }
        Some(Poor::Failed(endpoint, how)) => {
            progress.endpoint = Some(endpoint);
            Err(match how {
                Failed::Broken(broken) => failed(progress, broken),
                // An answer is never kept as a failure.
                Failed::Full | Failed::Unprocessed(_) => full(exchange, progress),
                Failed::Rejected(rejection) => rejection,
            })
        }
        Some(Poor::NotMade(rejection)) => Err(rejection),
        None => Err(Rejection::of(
            crate::telemetry::reason::Reason::InternalError,
        )),
    }
}
