//! Acting on trouble that stays.
//!
//! Looks at each trigger a few times a second, asks the pure machine what is due, and does it. Every action and every refusal to act is
//! an event.

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

/// How often triggers are looked at.
const TRIGGER_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// An open breaker whose time was over so long ago has seen no call since: nobody asks, so nothing is known.
const IDLE_PROBE_GRACE: Duration = Duration::from_secs(10);

/// Runs until the instance ends.
pub(super) async fn run_recoveries(state: Arc<State>) {
    let mut machines: HashMap<Arc<str>, RecoveryLadder> = HashMap::new();
    loop {
        clock::sleep(TRIGGER_CHECK_INTERVAL).await;
        let active_policy = state.active_policy.load_full();
        // A recovery that is gone from the policies is over; its machine stays, so that its hourly cap outlives a mistake in a file.
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
                state.lifecycle.remove_condition(
                    &condition_name(&spec.name),
                    clock::now(),
                    &state.telemetry,
                );
            }
            let now = clock::now();
            let trigger_reason = find_trigger_reason(&active_policy, spec, now);
            match machine.update(trigger_reason.is_some(), now) {
                None => {}
                // In a task of its own: a webhook that hangs keeps no other recovery waiting.
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

/// The trouble in words, if the trigger holds: a breaker of the backend that has not been closed for so long. One that was forced
/// open by hand is no trouble, nor one in shadow mode, nor one that would probe if only somebody called: an instance without
/// callers, perhaps because it made itself unready, could else never find out that all is well.
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
                    &state.telemetry,
                );
            }
            ("fail_readiness", Ok(trouble))
        }
        RecoveryAction::Webhook { .. } if is_shadow => ("webhook", Ok(trouble)),
        RecoveryAction::Webhook { url, timeout } => {
            let body = json!({"recovery": &*spec.name, "backend": &*spec.backend, "rung": rung + 1, "trouble": trouble, "at": Rfc3339(clock::wall_time()).to_string()});
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
        .remove_condition(&condition_name(recovery), clock::now(), &state.telemetry);
    state.telemetry.emit(Event::RecoveryUndone {
        recovery: recovery.clone(),
    });
}

/// The readiness condition of a recovery.
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
        .map_err(|_| format!("no answer within {timeout:?}"))??
        .status
    {
        // Only the host: the rest of the address may be a secret.
        status if (200..300).contains(&status) => Ok(format!("{authority} answered {status}")),
        status => Err(format!("{authority} answered {status}")),
    }
}
