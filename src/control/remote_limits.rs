//! Keeping a connection to whoever holds the buckets of all instances.
//!
//! It is made anew as long as the policies in force want it, and looked after each second. What is wrong with it is told once, as an event,
//! and stands in the readiness report; requests never wait for any of this.

#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "rls")]
mod service;

use std::{sync::Arc, time::Duration};

use tokio::{runtime, sync::watch as channel, task::JoinSet};

use crate::{
    clock,
    policy::snapshot::RemoteSpec,
    resilience::{backoff::Backoff, breaker::StateKind},
    state::{
        State,
        remote_limits::{RateLimitEngine, RemoteLimits},
    },
    telemetry::{engine_metrics::EngineOutcome, event::Event},
};

/// How long connecting, and a sign of life, may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a sign of life is asked for.
const BEAT: Duration = Duration::from_secs(1);
/// How long a failed connection waits before the next, at first; it doubles.
const RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// The line of the readiness report.
const REPORT: &str = "global-rate-limit";

/// Keeps a connection for the policies in force, once they want one. On a thread of its own: what requests ask must not wait for a reload.
pub(super) async fn keep(state: Arc<State>, mut generations: channel::Receiver<u64>) {
    let mut tasks = JoinSet::new();
    while state.live.load().remote_limits.is_none() {
        if !super::changed(&mut generations, &mut tasks).await {
            return;
        }
    }
    tasks.spawn_blocking(move || run(state, generations));
    tasks.join_next().await;
}

fn run(state: Arc<State>, generations: channel::Receiver<u64>) {
    match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(follow(state, generations)),
        Err(error) => tracing::error!("no runtime for the limits of all instances: {error}"),
    }
}

async fn follow(state: Arc<State>, mut generations: channel::Receiver<u64>) {
    let mut tasks = JoinSet::new();
    let mut current: Option<Arc<RemoteLimits>> = None;
    loop {
        let wanted = state.live.load().remote_limits.clone();
        if wanted.as_ref().map(Arc::as_ptr) != current.as_ref().map(Arc::as_ptr) {
            tasks.abort_all();
            match &wanted {
                Some(limits) => {
                    tasks.spawn(
                        Keeper {
                            state: state.clone(),
                            limits: limits.clone(),
                            told: None,
                        }
                        .stay_connected(),
                    );
                    tasks.spawn(pay(limits.clone()));
                }
                None => state.lifecycle.retract(REPORT),
            }
            current = wanted;
        }
        if !super::changed(&mut generations, &mut tasks).await {
            return;
        }
    }
}

/// Charges what answers were worth, in the order in which they came, as many at once as have come.
async fn pay(limits: Arc<RemoteLimits>) {
    while let Some(bills) = limits.bills().await {
        let count = bills.len();
        let outcome = match limits.engine() {
            None => EngineOutcome::Unavailable,
            Some(engine) => match clock::within(Some(PATIENCE), engine.ask(bills)).await {
                Ok(Ok(_)) => EngineOutcome::Charged,
                Ok(Err(fault)) => {
                    limits.report_fault(fault);
                    EngineOutcome::Error
                }
                Err(clock::Elapsed) => EngineOutcome::Timeout,
            },
        };
        (0..count).for_each(|_| limits.count(outcome));
    }
}

/// Looks after one engine, and tells how it stands.
struct Keeper {
    state: Arc<State>,
    limits: Arc<RemoteLimits>,
    /// What was last told to be wrong.
    told: Option<String>,
}

impl Keeper {
    async fn stay_connected(mut self) {
        let backoff =
            Backoff::try_new(RETRY, LONGEST_RETRY).expect("the longest wait is not the shortest");
        let mut failures = 0;
        loop {
            let opened =
                clock::within(Some(PATIENCE * 2), Connection::open(self.limits.spec())).await;
            let why = match opened.unwrap_or_else(|clock::Elapsed| Err(SILENT.to_owned())) {
                Err(why) => why,
                Ok(connection) => {
                    self.limits.connected(connection.engine());
                    self.is_well();
                    failures = 0;
                    self.until_lost(connection).await
                }
            };
            self.limits.disconnected();
            self.is_ill(&why);
            failures += 1;
            clock::sleep(
                backoff
                    .ceiling(failures)
                    .mul_f64(fastrand::f64().mul_add(0.5, 0.75)),
            )
            .await;
        }
    }

    /// Returns why a connection is of no use any more.
    async fn until_lost(&mut self, mut connection: Connection) -> String {
        loop {
            tokio::select! {
                () = clock::sleep(BEAT) => {}
                () = self.limits.faulty() => {}
            }
            match clock::within(Some(PATIENCE), connection.shows_life()).await {
                Ok(Ok(())) => {}
                Ok(Err(why)) => return why,
                Err(clock::Elapsed) => return SILENT.to_owned(),
            }
            // It lives, and may refuse all the same: it is full, or only to be read.
            let is_closed =
                self.limits.breaker().snapshot(clock::now()).0.state == StateKind::Closed;
            match self.limits.take_fault() {
                Some(fault) if fault.is_lost => return fault.why,
                Some(fault) if !is_closed => self.is_ill(&fault.why),
                // One answer that is late is no outage.
                _ if is_closed => self.is_well(),
                // While the breaker holds requests back, nobody knows.
                _ => {}
            }
        }
    }

    fn is_well(&mut self) {
        let engine = self.limits.spec().to_string();
        self.state.lifecycle.report(
            REPORT,
            Ok(format!("{engine} keeps the limits of all instances")),
        );
        if self.told.take().is_some() {
            self.state
                .telemetry
                .emit(Event::GlobalLimitsRestored { engine });
        }
    }

    fn is_ill(&mut self, why: &str) {
        let why = format!(
            "{} ({}): {why}",
            self.limits.spec(),
            self.limits.spec().place()
        );
        self.state.lifecycle.report(REPORT, Err(why.clone()));
        if self.told.as_ref() != Some(&why) {
            self.state
                .telemetry
                .emit(Event::GlobalLimitsLost { why: why.clone() });
            self.told = Some(why);
        }
    }
}

const SILENT: &str = "it does not answer";

/// A connection to one of the engines.
enum Connection {
    #[cfg(feature = "redis")]
    Redis(redis::Redis),
    #[cfg(feature = "rls")]
    Service(service::Service),
}

impl Connection {
    async fn open(spec: &RemoteSpec) -> Result<Self, String> {
        match spec {
            #[cfg(feature = "redis")]
            RemoteSpec::Redis(spec) => redis::Redis::open(spec).await.map(Self::Redis),
            #[cfg(feature = "rls")]
            RemoteSpec::Service(spec) => service::Service::open(spec).await.map(Self::Service),
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

    async fn shows_life(&mut self) -> Result<(), String> {
        match self {
            #[cfg(feature = "redis")]
            Self::Redis(redis) => redis.shows_life().await,
            #[cfg(feature = "rls")]
            // Its connection tells whoever asks on it next.
            Self::Service(_) => Ok(()),
        }
    }
}
