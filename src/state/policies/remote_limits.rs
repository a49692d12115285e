//! Global rate limits whose buckets a remote engine holds.
//!
//! This module holds the connection to the engine, its circuit breaker, its latest fault and
//! the charges that wait for it. The breaker bounds the effect of an engine that is slow or
//! unreachable. Only the first requests wait for the timeout. Later requests are admitted or
//! rejected at once, as the policy states, until one probe request succeeds.
//!
//! The module does not connect to the engine and does not evaluate its results.

use std::{
    fmt::Debug,
    future::Future,
    num::NonZeroU32,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use crate::{
    policy::{sections::rate_limit::spec::QuotaSpec, snapshot::RemoteEngineSpec},
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

/// Name of the breaker of the engine. Backend names contain no colon, so no backend has it.
pub const ENGINE_BREAKER_NAME: &str = "engine:global-rate-limit";

/// Maximum number of queued charges. Further charges are dropped.
const MAX_PENDING_CHARGES: usize = 4_096;
/// Maximum number of charges that are sent at once.
const MAX_CHARGES_PER_BATCH: usize = 64;

/// Request for tokens of one bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketRequest {
    /// Rule of the bucket, of the form `ROUTE/RULE`.
    pub rule: Arc<str>,
    /// Key of the bucket within its rule: a hash that is the same on all instances. `None`
    /// selects the only bucket of a rule without keys.
    pub key: Option<String>,
    /// Rate and capacity of the bucket.
    pub quota: QuotaSpec,
    /// Number of tokens to take.
    pub tokens: u64,
    /// Maximum time to wait for the tokens. `None` takes them in any case, and the bucket may
    /// go into debt.
    pub max_wait: Option<Duration>,
    /// Whether a rejection ends the evaluation, so that the following buckets lose no tokens.
    pub is_enforced: bool,
}

/// Result of each bucket, in order, up to the first rejection that is enforced.
pub type BucketResults = Vec<Result<RateLimitGrant, RateLimited>>;

/// Fault of an engine that did not send a valid response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineFault {
    /// Description of the fault for logs and reports.
    pub reason: String,
    /// Whether the connection cannot be used any more.
    pub is_connection_lost: bool,
}

/// Future of the response of an engine.
pub type EngineResponse = Pin<Box<dyn Future<Output = Result<BucketResults, EngineFault>> + Send>>;

/// Remote engine that holds token buckets.
pub trait RateLimitEngine: Debug + Send + Sync {
    /// Sends requests for several buckets at once; the results have the same order.
    fn send_requests(&self, asks: Vec<BucketRequest>) -> EngineResponse;
}

/// Remote engine that a policy configures, with its connection and circuit breaker.
#[derive(Debug)]
pub struct RemoteLimits {
    spec: RemoteEngineSpec,
    breaker: Arc<BreakerState>,
    /// Current connection; empty while there is none.
    engine: ArcSwapOption<Box<dyn RateLimitEngine>>,
    /// Latest fault that the maintaining task has not taken yet.
    last_fault: Mutex<Option<EngineFault>>,
    /// Queue of charges for costs that responses stated.
    pending_charges: mpsc::Sender<BucketRequest>,
    /// Receiver of the queued charges, used by the task that sends them.
    charge_receiver: tokio::sync::Mutex<mpsc::Receiver<BucketRequest>>,
    /// Notified when a fault is reported.
    fault_notify: Notify,
    metrics: EngineMetrics,
}

impl RemoteLimits {
    /// Creates an engine without a connection.
    pub(in crate::state) fn new(
        spec: RemoteEngineSpec,
        telemetry: &Arc<Telemetry>,
        now: Instant,
    ) -> Self {
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

    /// Returns the compiled policy of the engine.
    #[must_use]
    pub fn spec(&self) -> &RemoteEngineSpec {
        &self.spec
    }

    /// Returns the circuit breaker in front of the engine.
    #[must_use]
    pub fn breaker(&self) -> &Arc<BreakerState> {
        &self.breaker
    }

    /// Returns the current connection; `None` while there is none.
    #[must_use]
    pub fn engine(&self) -> Option<Arc<Box<dyn RateLimitEngine>>> {
        self.engine.load_full()
    }

    /// Sets the connection that requests use from now on.
    pub fn set_engine(&self, engine: Box<dyn RateLimitEngine>) {
        self.engine.store(Some(Arc::new(engine)));
        self.metrics.set_connected(Some(true));
    }

    /// Removes the connection. Requests then count the engine as unavailable.
    pub fn clear_engine(&self) {
        self.engine.store(None);
        self.metrics.set_connected(Some(false));
    }

    /// Stores a fault, and notifies the task that maintains the connection.
    pub fn report_fault(&self, fault: EngineFault) {
        *self.last_fault.lock() = Some(fault);
        self.fault_notify.notify_one();
    }

    /// Takes the latest fault that was reported since the previous call.
    pub fn take_fault(&self) -> Option<EngineFault> {
        self.last_fault.lock().take()
    }

    /// Queues a charge for the engine. If the queue is full, the charge is dropped and counted
    /// as unavailable.
    pub fn enqueue_charge(&self, charge: BucketRequest) {
        if self.pending_charges.try_send(charge).is_err() {
            self.record_outcome(EngineOutcome::Unavailable);
        }
    }

    /// Waits for queued charges, and returns at most 64 of them; `None` once the queue is
    /// closed.
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

    /// Waits until a fault is reported.
    pub async fn wait_for_fault(&self) {
        self.fault_notify.notified().await;
    }

    /// Clears the connection metric, because no policy configures this engine any more.
    pub(in crate::state) fn retire(&self) {
        self.metrics.set_connected(None);
    }

    /// Counts the outcome of a request for one bucket.
    pub fn record_outcome(&self, outcome: EngineOutcome) {
        self.metrics.record_request(outcome);
    }
}

/// Returns the configuration of the breaker of the engine.
///
/// It opens after five failures in a row, or if half of at least 20 calls in ten seconds fail.
/// It stays open for one second, and up to five after failed probes. One probe then decides.
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
