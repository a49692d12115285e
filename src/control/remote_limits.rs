//! Keeping a connection to whoever holds the buckets of all instances.
//!
//! It is made anew as long as the policies in force want it, and looked after each second. What is wrong with it is told once, as an event,
//! and stands in the readiness report; requests never wait for any of this.

#[cfg(feature = "rls")]
mod rate_limit_service;
#[cfg(feature = "redis")]
mod redis;

use std::{sync::Arc, time::Duration};

use tokio::{runtime, sync::watch as channel, task::JoinSet};

use crate::{
    clock,
    policy::snapshot::RemoteEngineSpec,
    resilience::{backoff::Backoff, breaker::StateKind},
    state::{
        State,
        policies::remote_limits::{RateLimitEngine, RemoteLimits},
    },
    telemetry::{engine_metrics::EngineOutcome, event::Event},
};

/// How long connecting, and a sign of life, may take.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a sign of life is asked for.
const LIVENESS_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a failed connection waits before the next, at first; it doubles.
const INITIAL_RECONNECT_DELAY: Duration = Duration::from_millis(100);
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(5);

/// The line of the readiness report.
const REPORT_NAME: &str = "global-rate-limit";

/// Keeps a connection for the policies in force, once they want one. On a thread of its own: what requests ask must not wait for a reload.
pub(super) async fn start_when_configured(
    state: Arc<State>,
    mut generations: channel::Receiver<u64>,
) {
    let mut tasks = JoinSet::new();
    while state.active_policy.load().remote_limits.is_none() {
        if !super::wait_for_policy_change(&mut generations, &mut tasks).await {
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
        if !super::wait_for_policy_change(&mut generations, &mut tasks).await {
            return;
        }
    }
}

/// Charges what answers were worth, in the order in which they came, as many at once as have come.
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

/// Looks after one engine, and tells how it stands.
struct EngineConnector {
    state: Arc<State>,
    limits: Arc<RemoteLimits>,
    /// What was last told to be wrong.
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

    /// Returns why a connection is of no use any more.
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
            // It lives, and may refuse all the same: it is full, or only to be read.
            let is_closed =
                self.limits.breaker().snapshot(clock::now()).0.state == StateKind::Closed;
            match self.limits.take_fault() {
                Some(fault) if fault.is_connection_lost => return fault.reason,
                Some(fault) if !is_closed => self.report_unhealthy(&fault.reason),
                // One answer that is late is no outage.
                _ if is_closed => self.report_healthy(),
                // While the breaker holds requests back, nobody knows.
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

const NO_RESPONSE: &str = "it does not answer";

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
            RemoteEngineSpec::Redis(spec) => redis::RedisEngine::open(spec).await.map(Self::Redis),
            #[cfg(feature = "rls")]
            RemoteEngineSpec::Service(spec) => {
                rate_limit_service::RateLimitServiceEngine::open(spec)
                    .await
                    .map(Self::Service)
            }
            // The compiler of policies refuses what this build does not know.
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
            // Its connection tells whoever asks on it next.
            Self::Service(_) => Ok(()),
        }
    }
}
