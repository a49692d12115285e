//! Limits that are kept outside: who keeps them, whether it can be reached, and what it said.
//!
//! A request asks through a breaker of the engine's own. An engine that is slow or gone costs the first requests their time-out, and
//! none after them: what follows passes or is refused at once, as the policy says, until a single request finds it well again.

use std::{
    fmt::Debug,
    future::Future,
    num::NonZeroU32,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use tokio::sync::{Notify, mpsc};

use crate::{
    policy::snapshot::{QuotaSpec, RemoteEngineSpec},
    resilience::{
        Mode,
        breaker::{BreakerConfig, BreakerThresholds, BreakerTimes},
        ratio::Ratio,
    },
    state::policies::{
        breaker::BreakerState,
        rate_limit::{RateLimitGrant, RateLimited},
    },
    telemetry::{
        Telemetry,
        engine_metrics::{EngineMetrics, EngineOutcome},
    },
};

/// The name of the engine's breaker; no backend can be called so.
pub const ENGINE_BREAKER_NAME: &str = "engine:global-rate-limit";

/// So many bills may be on their way.
const MAX_PENDING_CHARGES: usize = 4_096;
/// So many are paid at once.
const MAX_CHARGES_PER_BATCH: usize = 64;

/// What is asked of a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketRequest {
    /// Its rule, `ROUTE/RULE`.
    pub rule: Arc<str>,
    /// What tells it apart from the rule's others: a hash, the same on all instances.
    pub key: Option<String>,
    /// What it holds.
    pub quota: QuotaSpec,
    /// Tokens.
    pub tokens: u64,
    /// How long to wait for them at most; `None` takes them in any case, into debt.
    pub max_wait: Option<Duration>,
    /// Whether those behind it are not asked when it refuses.
    pub is_enforced: bool,
}

/// What an engine said of each bucket; ends with the first that refuses and is enforced.
pub type BucketResults = Vec<Result<RateLimitGrant, RateLimited>>;

/// What an engine said instead of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineFault {
    /// In words.
    pub reason: String,
    /// Whether the connection is of no use any more.
    pub is_connection_lost: bool,
}

/// The answer of an engine that is still on its way.
pub type EngineResponse = Pin<Box<dyn Future<Output = Result<BucketResults, EngineFault>> + Send>>;

/// Somebody who keeps buckets.
pub trait RateLimitEngine: Debug + Send + Sync {
    /// Asks of several buckets at once; they are answered in order.
    fn send_requests(&self, asks: Vec<BucketRequest>) -> EngineResponse;
}

/// An engine by its policy.
#[derive(Debug)]
pub struct RemoteLimits {
    spec: RemoteEngineSpec,
    breaker: Arc<BreakerState>,
    /// The connection, while there is one.
    engine: ArcSwapOption<Box<dyn RateLimitEngine>>,
    /// What it last said instead of an answer.
    last_fault: Mutex<Option<EngineFault>>,
    /// What answers were worth, on its way to the engine.
    pending_charges: mpsc::Sender<BucketRequest>,
    /// The other end, for the one who pays.
    charge_receiver: tokio::sync::Mutex<mpsc::Receiver<BucketRequest>>,
    /// Told when it has said something instead of an answer.
    fault_notify: Notify,
    metrics: EngineMetrics,
}

impl RemoteLimits {
    /// An engine that is not connected yet.
    pub(crate) fn new(spec: RemoteEngineSpec, telemetry: &Arc<Telemetry>, now: Instant) -> Self {
        let (pending_charges, charge_receiver) = mpsc::channel(MAX_PENDING_CHARGES);
        let metrics = EngineMetrics::new(&telemetry.metrics);
        metrics.set_connected(Some(false));
        let breaker = Arc::new(BreakerState::new(
            ENGINE_BREAKER_NAME.into(),
            breaker_config(),
            Mode::Enforce,
            telemetry.clone(),
            now,
        ));
        Self {
            spec,
            breaker,
            engine: ArcSwapOption::empty(),
            last_fault: Mutex::new(None),
            pending_charges,
            charge_receiver: tokio::sync::Mutex::new(charge_receiver),
            fault_notify: Notify::new(),
            metrics,
        }
    }

    /// Who the engine is.
    #[must_use]
    pub fn spec(&self) -> &RemoteEngineSpec {
        &self.spec
    }

    /// The breaker in front of it.
    #[must_use]
    pub fn breaker(&self) -> &Arc<BreakerState> {
        &self.breaker
    }

    /// The connection, if there is one.
    #[must_use]
    pub fn engine(&self) -> Option<Arc<Box<dyn RateLimitEngine>>> {
        self.engine.load_full()
    }

    /// Puts a connection in force.
    pub fn set_engine(&self, engine: Box<dyn RateLimitEngine>) {
        self.engine.store(Some(Arc::new(engine)));
        self.metrics.set_connected(Some(true));
    }

    /// There is no connection now.
    pub fn clear_engine(&self) {
        self.engine.store(None);
        self.metrics.set_connected(Some(false));
    }

    /// Keeps what the engine said instead of an answer, for whoever looks after it, and calls for that at once.
    pub fn report_fault(&self, fault: EngineFault) {
        *self
            .last_fault
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(fault);
        self.fault_notify.notify_one();
    }

    /// What the engine said instead of an answer since the last look.
    pub fn take_fault(&self) -> Option<EngineFault> {
        self.last_fault
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Sends a bill on its way; what finds no room is counted and forgotten.
    pub fn enqueue_charge(&self, charge: BucketRequest) {
        if self.pending_charges.try_send(charge).is_err() {
            self.record_outcome(EngineOutcome::Unavailable);
        }
    }

    /// Waits for bills.
    pub async fn receive_charges(&self) -> Option<Vec<BucketRequest>> {
        let mut charges = Vec::new();
        let count = self
            .charge_receiver
            .lock()
            .await
            .recv_many(&mut charges, MAX_CHARGES_PER_BATCH)
            .await;
        (count > 0).then_some(charges)
    }

    /// Waits until the engine says something instead of an answer.
    pub async fn wait_for_fault(&self) {
        self.fault_notify.notified().await;
    }

    /// Nobody is to be connected any more.
    pub(crate) fn retire(&self) {
        self.metrics.set_connected(None);
    }

    /// Counts how asking went.
    pub fn record_outcome(&self, outcome: EngineOutcome) {
        self.metrics.record_request(outcome);
    }
}

/// Five failures in a row, or half of all, open it for a second, later for up to five; one request finds out.
fn breaker_config() -> BreakerConfig {
    let thresholds = BreakerThresholds {
        consecutive_failures: NonZeroU32::new(5),
        failure_rate: Ratio::from_percent(50.0).ok(),
        slow_call_rate: None,
        minimum_calls: NonZeroU32::new(20).unwrap_or(NonZeroU32::MIN),
    };
    let second = Duration::from_secs(1);
    let times = BreakerTimes {
        window: second * 10,
        open_duration: second,
        max_open_duration: second * 5,
        max_half_open_duration: second,
        recovery_ramp: Duration::ZERO,
    };
    BreakerConfig::try_new(thresholds, times, NonZeroU32::MIN).expect("the thresholds fit together")
}
