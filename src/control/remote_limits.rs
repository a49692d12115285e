//! Maintains the connection to the engine of global rate limits, which holds buckets shared by
//! all instances.
//!
//! This module decides when to connect, when a connection is lost, and when to reconnect. It
//! checks the connection every second. Each fault is reported once as an event and stays in the
//! readiness report. Requests never wait for this module. It does not decide whether a request
//! is limited.

#[cfg(feature = "rls")]
mod rate_limit_service;
#[cfg(feature = "redis")]
mod redis;

use std::{sync::Arc, time::Duration};

use tokio::{runtime, sync::watch as channel, task::JoinSet};

use crate::{
    clock,
    control::policy_change,
    policy::snapshot::RemoteEngineSpec,
    resilience::{backoff::Backoff, breaker::StateKind},
    state::{
        State,
        policies::remote_limits::{RateLimitEngine, RemoteLimits},
    },
    telemetry::{engine_metrics::EngineOutcome, event::Event},
};

/// Timeout of one liveness check or one batch of charges, and of each phase of connecting.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval of liveness checks.
const LIVENESS_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Delay before the first reconnect after a failure. It doubles up to [`MAX_RECONNECT_DELAY`].
const INITIAL_RECONNECT_DELAY: Duration = Duration::from_millis(100);
/// Maximum delay before a reconnect, without jitter.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(5);

/// Name of the readiness report of the engine connection.
const REPORT_NAME: &str = "global-rate-limit";

/// Waits until a policy configures global rate limits, and then maintains the connection.
///
/// The connection runs on a thread of its own, so that a reload on the control thread does not
/// delay rate limit requests.
pub(super) async fn start_when_configured(
    state: Arc<State>,
    mut generations: channel::Receiver<u64>,
) {
    let mut tasks = JoinSet::new();
    while state.active_policy.load().remote_limits.is_none() {
        if !policy_change::wait_for_policy_change(&mut generations, &mut tasks).await {
            return;
        }
    }
    tasks.spawn_blocking(move || run_dedicated_runtime(state, generations));
    tasks.join_next().await;
}

fn run_dedicated_runtime(state: Arc<State>, generations: channel::Receiver<u64>) {
    match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(maintain_connection(state, generations)),
        Err(error) => tracing::error!("no runtime for the limits of all instances: {error}"),
    }
}

async fn maintain_connection(state: Arc<State>, mut generations: channel::Receiver<u64>) {
    let mut tasks = JoinSet::new();
    let mut current: Option<Arc<RemoteLimits>> = None;
    loop {
        let configured = state.active_policy.load().remote_limits.clone();
        if configured.as_ref().map(Arc::as_ptr) != current.as_ref().map(Arc::as_ptr) {
            tasks.abort_all();
            match &configured {
                Some(limits) => {
                    tasks.spawn(
                        EngineConnector {
                            state: state.clone(),
                            limits: limits.clone(),
                            last_reported_fault: None,
                        }
                        .stay_connected(),
                    );
                    tasks.spawn(send_charges(limits.clone()));
                }
                None => state.lifecycle.remove_report(REPORT_NAME),
            }
            current = configured;
        }
        if !policy_change::wait_for_policy_change(&mut generations, &mut tasks).await {
            return;
        }
    }
}

/// Sends queued charges to the engine, in order and in batches. A charge accounts for the cost
/// that a response reported.
async fn send_charges(limits: Arc<RemoteLimits>) {
    while let Some(pending_charges) = limits.receive_charges().await {
        let count = pending_charges.len();
        let outcome = match limits.engine() {
            None => EngineOutcome::Unavailable,
            Some(engine) => {
                match clock::timeout(Some(ENGINE_TIMEOUT), engine.send_requests(pending_charges))
                    .await
                {
                    Ok(Ok(_)) => EngineOutcome::Charged,
                    Ok(Err(fault)) => {
                        limits.report_fault(fault);
                        EngineOutcome::Error
                    }
                    Err(clock::Elapsed) => EngineOutcome::Timeout,
                }
            }
        };
        (0..count).for_each(|_| limits.record_outcome(outcome));
    }
}

/// Maintains the connection to one engine and reports its state.
struct EngineConnector {
    state: Arc<State>,
    limits: Arc<RemoteLimits>,
    /// Last reported fault, so that each fault is reported once.
    last_reported_fault: Option<String>,
}

impl EngineConnector {
    async fn stay_connected(mut self) {
        let backoff = Backoff::try_new(INITIAL_RECONNECT_DELAY, MAX_RECONNECT_DELAY)
            .expect("the longest wait is not the shortest");
        let mut failures = 0;
        loop {
            let opened = clock::timeout(
                Some(ENGINE_TIMEOUT * 2),
                EngineConnection::open(self.limits.spec()),
            )
            .await;
            let reason = match opened.unwrap_or_else(|clock::Elapsed| Err(NO_RESPONSE.to_owned())) {
                Err(reason) => reason,
                Ok(connection) => {
                    self.limits.set_engine(connection.engine());
                    self.report_healthy();
                    failures = 0;
                    self.wait_until_lost(connection).await
                }
            };
            self.limits.clear_engine();
            self.report_unhealthy(&reason);
            failures += 1;
            clock::sleep(
                backoff
                    .max_wait(failures)
                    .mul_f64(fastrand::f64().mul_add(0.5, 0.75)),
            )
            .await;
        }
    }

    /// Checks a connection until it is lost, and returns the reason.
    async fn wait_until_lost(&mut self, mut connection: EngineConnection) -> String {
        loop {
            tokio::select! {
                () = clock::sleep(LIVENESS_CHECK_INTERVAL) => {}
                () = self.limits.wait_for_fault() => {}
            }
            match clock::timeout(Some(ENGINE_TIMEOUT), connection.check_liveness()).await {
                Ok(Ok(())) => {}
                Ok(Err(reason)) => return reason,
                Err(clock::Elapsed) => return NO_RESPONSE.to_owned(),
            }
            // A reachable engine can still reject requests, for example because its memory is
            // full or it is a read-only replica.
            let is_closed =
                self.limits.breaker().snapshot(clock::now()).0.state == StateKind::Closed;
            match self.limits.take_fault() {
                Some(fault) if fault.is_connection_lost => return fault.reason,
                Some(fault) if !is_closed => self.report_unhealthy(&fault.reason),
                // One late response is no outage while the breaker is closed.
                _ if is_closed => self.report_healthy(),
                // While the breaker rejects requests, the state of the engine is unknown.
                _ => {}
            }
        }
    }

    fn report_healthy(&mut self) {
        let engine = self.limits.spec().to_string();
        self.state.lifecycle.set_report(
            REPORT_NAME,
            Ok(format!("{engine} keeps the limits of all instances")),
        );
        if self.last_reported_fault.take().is_some() {
            self.state
                .telemetry
                .emit(Event::GlobalLimitsRestored { engine });
        }
    }

    fn report_unhealthy(&mut self, reason: &str) {
        let reason = format!(
            "{} ({}): {reason}",
            self.limits.spec(),
            self.limits.spec().location()
        );
        self.state
            .lifecycle
            .set_report(REPORT_NAME, Err(reason.clone()));
        if self.last_reported_fault.as_ref() != Some(&reason) {
            self.state.telemetry.emit(Event::GlobalLimitsLost {
                reason: reason.clone(),
            });
            self.last_reported_fault = Some(reason);
        }
    }
}

const NO_RESPONSE: &str = "it does not respond";

/// A connection to one of the engines.
enum EngineConnection {
    #[cfg(feature = "redis")]
    Redis(redis::RedisEngine),
    #[cfg(feature = "rls")]
    Service(rate_limit_service::RateLimitServiceEngine),
}

impl EngineConnection {
    async fn open(spec: &RemoteEngineSpec) -> Result<Self, String> {
        match spec {
            #[cfg(feature = "redis")]
            RemoteEngineSpec::Redis(spec) => redis::RedisEngine::open(spec, ENGINE_TIMEOUT)
                .await
                .map(Self::Redis),
            #[cfg(feature = "rls")]
            RemoteEngineSpec::Service(spec) => {
                rate_limit_service::RateLimitServiceEngine::open(spec, ENGINE_TIMEOUT)
                    .await
                    .map(Self::Service)
            }
            // The policy compiler rejects engines that this build does not support.
            #[cfg(not(all(feature = "redis", feature = "rls")))]
            _ => Err("this build does not know it".to_owned()),
        }
    }

    fn engine(&self) -> Box<dyn RateLimitEngine> {
        match self {
            #[cfg(feature = "redis")]
            Self::Redis(redis) => Box::new(redis.clone()),
            #[cfg(feature = "rls")]
            Self::Service(service) => Box::new(service.clone()),
        }
    }

    async fn check_liveness(&mut self) -> Result<(), String> {
        match self {
            #[cfg(feature = "redis")]
            Self::Redis(redis) => redis.check_liveness().await,
            #[cfg(feature = "rls")]
            // The HTTP/2 keep-alive of the channel detects a lost connection; the next request
            // then fails.
            Self::Service(_) => Ok(()),
        }
    }
}
