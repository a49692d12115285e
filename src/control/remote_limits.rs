//! Keeping a connection to whoever holds the buckets of all instances.
//!
//! It is made anew as long as the policies in force want it, and looked after each second. What is wrong with it is told once, as an event,
//! and stands in the readiness report; requests never wait for any of this.

#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "rls")]
mod service;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{sync::watch as channel, task::JoinSet};

use crate::{
    clock,
    policy::snapshot::RemoteSpec,
    state::{
        State,
        remote_limits::{RateLimitEngine, RemoteLimits},
    },
    telemetry::event::Event,
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

/// Keeps a connection for the policies in force, if they want one.
pub(super) async fn keep(state: Arc<State>, mut generations: channel::Receiver<u64>) {
    let mut tasks = JoinSet::new();
    let mut current: Option<Arc<RemoteLimits>> = None;
    loop {
        let wanted = state.live.load().remote_limits.clone();
        if wanted.as_ref().map(Arc::as_ptr) != current.as_ref().map(Arc::as_ptr) {
            tasks.abort_all();
            match &wanted {
                Some(limits) => _ = tasks.spawn(stay_connected(state.clone(), limits.clone())),
                None => state.lifecycle.retract(REPORT),
            }
            current = wanted;
        }
        if !super::changed(&mut generations, &mut tasks).await {
            return;
        }
    }
}

async fn stay_connected(state: Arc<State>, limits: Arc<RemoteLimits>) {
    let (mut wait, mut told) = (RETRY, None);
    loop {
        let why = match Connection::open(limits.spec()).await {
            Err(why) => why,
            Ok(connection) => {
                limits.connected(connection.engine(Arc::downgrade(&limits)));
                state.lifecycle.report(REPORT, Ok(format!("{} keeps the limits of all instances", limits.spec())));
                if told.take().is_some() {
                    state.telemetry.emit(Event::GlobalLimitsRestored { engine: limits.spec().to_string() });
                }
                wait = RETRY;
                until_lost(connection, &limits).await
            }
        };
        limits.disconnected();
        let why = format!("{} ({}): {why}", limits.spec(), limits.spec().place());
        state.lifecycle.report(REPORT, Err(why.clone()));
        if told.as_ref() != Some(&why) {
            state.telemetry.emit(Event::GlobalLimitsLost { why: why.clone() });
            told = Some(why);
        }
        clock::sleep(wait.mul_f64(fastrand::f64().mul_add(0.5, 0.75))).await;
        wait = (wait * 2).min(LONGEST_RETRY);
    }
}

/// Returns why a connection is of no use any more.
async fn until_lost(mut connection: Connection, limits: &RemoteLimits) -> String {
    loop {
        tokio::select! {
            () = clock::sleep(BEAT) => {}
            () = limits.broken() => {}
        }
        match clock::within(Some(PATIENCE), connection.shows_life()).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return why,
            Err(clock::Elapsed) => return SILENT.to_owned(),
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

    fn engine(&self, limits: Weak<RemoteLimits>) -> Box<dyn RateLimitEngine> {
        match self {
            #[cfg(feature = "redis")]
            Self::Redis(redis) => Box::new(redis.engine(limits)),
            #[cfg(feature = "rls")]
            Self::Service(service) => Box::new(service.engine(limits)),
        }
    }

    async fn shows_life(&mut self) -> Result<(), String> {
        match self {
            #[cfg(feature = "redis")]
            Self::Redis(redis) => redis.shows_life().await,
            #[cfg(feature = "rls")]
            Self::Service(service) => service.shows_life(),
        }
    }
}
