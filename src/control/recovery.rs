//! Executes recovery actions when a breaker stays open: failing readiness, or calling a
//! webhook.
//!
//! This module evaluates the trigger of each recovery four times per second and passes it to
//! the pure [`RecoveryLadder`], which decides what is due. Each action is an event, and so is
//! reaching the hourly cap. The module does not know whether an action has helped; the next
//! evaluation of the trigger shows that.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde_json::json;

use crate::{
    clock::{self, Rfc3339},
    control::http1_call,
    policy::snapshot::{RecoveryAction, RecoverySpec},
    resilience::{
        Mode,
        breaker::StateKind,
        recovery::{RecoveryLadder, RecoveryStep},
    },
    state::{State, active_policy::ActivePolicy, policies::breaker::BreakerState},
    telemetry::event::Event,
    transport::{queued_stream, socket::Socket},
};

/// Interval at which triggers are evaluated.
const TRIGGER_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Time after the end of its open time at which a breaker counts as idle. No request has probed
/// it since, so its state says nothing about the backend.
const IDLE_PROBE_GRACE: Duration = Duration::from_secs(10);

/// Evaluates all recoveries of the active policy and executes due actions. Never returns.
pub(super) async fn run_recoveries(state: Arc<State>) {
    let mut machines: HashMap<Arc<str>, RecoveryLadder> = HashMap::new();
    loop {
        clock::sleep(TRIGGER_CHECK_INTERVAL).await;
        let active_policy = state.active_policy.load_full();
        // A recovery that left the policy is undone. Its ladder is retained, so that a
        // temporary mistake in a file does not reset the hourly cap.
        for (name, machine) in machines.iter_mut().filter(|(name, _)| {
            !active_policy
                .snapshot
                .recoveries
                .iter()
                .any(|spec| spec.name == **name)
        }) {
            if machine.update(false, clock::now()).is_some() {
                undo_recovery(&state, name);
            }
        }
        for spec in &active_policy.snapshot.recoveries {
            let machine = machines
                .entry(spec.name.clone())
                .or_insert_with(|| RecoveryLadder::new(spec.config));
            machine.reconfigure(spec.config);
            let has_failed_readiness = spec
                .ladder
                .iter()
                .take(machine.rungs_taken() as usize)
                .any(|action| *action == RecoveryAction::FailReadiness);
            if spec.mode != Mode::Enforce || !has_failed_readiness {
                state
                    .lifecycle
                    .remove_condition(&condition_name(&spec.name), clock::now());
            }
            let now = clock::now();
            let trigger_reason = find_trigger_reason(&active_policy, spec, now);
            match machine.update(trigger_reason.is_some(), now) {
                None => {}
                // A separate task keeps a slow webhook from delaying other recoveries.
                Some(RecoveryStep::TakeRung(rung)) => drop(tokio::spawn(execute_action(
                    state.clone(),
                    spec.clone(),
                    rung,
                    trigger_reason.unwrap_or_default(),
                ))),
                Some(RecoveryStep::Capped) => state.telemetry.emit(Event::RecoveryCapped {
                    recovery: spec.name.clone(),
                }),
                Some(RecoveryStep::Undo(_)) => undo_recovery(&state, &spec.name),
            }
        }
    }
}

/// Returns a description of the trigger if it holds: a breaker of the backend has not been
/// closed for at least [`RecoverySpec::open_for`].
///
/// These breakers do not count:
///
/// - A breaker that an operator forced open.
/// - A breaker that is not in enforce mode.
/// - A breaker that has been idle since its open time ended. An instance without traffic, for
///   example because a recovery failed its readiness, could otherwise never recover.
fn find_trigger_reason(
    active_policy: &ActivePolicy,
    spec: &RecoverySpec,
    now: Instant,
) -> Option<String> {
    let destinations = active_policy
        .routes
        .iter()
        .flat_map(|route| &route.destinations)
        .filter(|destination| destination.backend.spec.name == spec.backend);
    let breakers = destinations.flat_map(|destination| {
        destination
            .breaker
            .iter()
            .chain(&destination.endpoint_breakers)
    });
    breakers
        .into_iter()
        .find_map(|breaker: &Arc<BreakerState>| {
            let (snapshot, mode) = breaker.snapshot(now);
            let is_overdue = snapshot.state == StateKind::Open
                && snapshot
                    .deadline
                    .is_some_and(|at| now > at + IDLE_PROBE_GRACE);
            if is_overdue || snapshot.state == StateKind::ForcedOpen || mode != Mode::Enforce {
                return None;
            }
            let since = snapshot.tripped_since?;
            let open_for = now.saturating_duration_since(since);
            (open_for >= spec.open_for).then(|| {
                format!(
                    "breaker {} has not been closed for {open_for:.1?}",
                    breaker.name()
                )
            })
        })
}

async fn execute_action(state: Arc<State>, spec: RecoverySpec, rung: u32, trouble: String) {
    let Some(action) = usize::try_from(rung)
        .ok()
        .and_then(|index| spec.ladder.get(index))
    else {
        return;
    };
    let is_shadow = spec.mode == Mode::Shadow;
    let (name, result) = match action {
        RecoveryAction::FailReadiness => {
            if !is_shadow {
                state.lifecycle.set_condition(
                    &condition_name(&spec.name),
                    false,
                    trouble.clone(),
                    clock::now(),
                );
            }
            ("fail_readiness", Ok(trouble))
        }
        RecoveryAction::Webhook { .. } if is_shadow => ("webhook", Ok(trouble)),
        RecoveryAction::Webhook { url, timeout } => {
            let body = json!({
                "recovery": &*spec.name,
                "backend": &*spec.backend,
                "rung": rung + 1,
                "trouble": trouble,
                "at": Rfc3339(clock::wall_time()).to_string(),
            });
            (
                "webhook",
                call_webhook(url, Bytes::from(body.to_string()), *timeout).await,
            )
        }
    };
    state.telemetry.emit(Event::RecoveryActed {
        recovery: spec.name.clone(),
        rung: rung + 1,
        action: name,
        is_shadow,
        result,
    });
}

fn undo_recovery(state: &State, recovery: &Arc<str>) {
    state
        .lifecycle
        .remove_condition(&condition_name(recovery), clock::now());
    state.telemetry.emit(Event::RecoveryUndone {
        recovery: recovery.clone(),
    });
}

/// Returns the name of the readiness condition that the action `fail_readiness` sets.
fn condition_name(recovery: &str) -> String {
    format!("recovery-{recovery}")
}

async fn call_webhook(url: &http::Uri, body: Bytes, timeout: Duration) -> Result<String, String> {
    let (Some(host), port) = (url.host(), url.port_u16().unwrap_or(80)) else {
        return Err(format!("{url} names no host"));
    };
    let host = host.trim_matches(['[', ']']);
    let resolved = clock::timeout(Some(timeout), tokio::net::lookup_host((host, port)))
        .await
        .map_err(|_| format!("{host} was not resolved within {timeout:?}"))?;
    let address = resolved
        .map_err(|error| format!("{host} cannot be resolved: {error}"))?
        .next()
        .ok_or_else(|| format!("{host} has no address"))?;
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let authority = url.authority().map_or(host, |authority| authority.as_str());
    let head = http1_call::build_request_head("POST", path, authority, &body)?;
    let call = async {
        let socket = Socket::connect(&address.into())
            .await
            .map_err(|error| format!("connect: {error}"))?;
        http1_call::send_request(queued_stream::open(socket, None), head, body, 0).await
    };
    match clock::timeout(Some(timeout), call)
        .await
        .map_err(|_| format!("no response within {timeout:?}"))??
        .status
    {
        // The message contains only host and port, because path and query may contain a secret.
        status if (200..300).contains(&status) => {
            Ok(format!("{authority} responded with {status}"))
        }
        status => Err(format!("{authority} responded with {status}")),
    }
}
