//! A worker of the data plane: a thread with its own runtime, its own pool, and a share of
//! every listener.
//!
//! Each worker has a single-threaded runtime. No task moves to another thread, no request wakes
//! another thread, and a request stays on the same core as its connections. The module does not
//! know what runs on a worker.

use std::{
    io,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    runtime::{self, Handle},
    sync::{Notify, watch},
};

use crate::{
    clock,
    proxy::upstream::pool::ConnectionPool,
    resilience::memory_pressure::MemoryLevel,
    state::{
        State,
        topology::endpoint::{ConnectionLimitReached, EndpointState},
    },
};

/// Interval between sweeps of idle connections. A worker also records a heartbeat at each
/// sweep.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum time for which a worker collects access log lines.
const ACCESS_LOG_DELAY: Duration = Duration::from_millis(10);

/// State that all tasks of a worker share.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) state: Arc<State>,
    /// Pools of all workers. A worker uses only its own pool, except to evict an idle
    /// connection.
    pools: Arc<[ConnectionPool]>,
    index: usize,
    /// Notified when a batch of access log lines starts.
    access_log_batch: Notify,
}

impl Worker {
    /// Returns the pool of this worker.
    pub(crate) fn pool(&self) -> &ConnectionPool {
        &self.pools[self.index]
    }

    /// Schedules the hand-over of the access log lines of this worker. Only tasks of this worker
    /// may call it.
    pub(crate) fn schedule_access_log_flush(&self) {
        self.access_log_batch.notify_one();
    }

    /// Publishes how much memory this worker holds. Only tasks of this worker may call it.
    pub(crate) fn observe_memory(&self) {
        self.state.memory.observe(self.index);
    }

    /// Returns the level of memory pressure, after the memory of this worker was published. Only
    /// tasks of this worker may call it.
    pub(crate) fn memory_level(&self) -> MemoryLevel {
        self.observe_memory();
        self.state.memory.level()
    }

    /// Returns whether the whole memory budget is used. Only tasks of this worker may call it.
    pub(crate) fn is_memory_exhausted(&self) -> bool {
        let memory = &self.state.memory;
        self.memory_level() == MemoryLevel::Critical && memory.used_bytes() >= memory.budget_bytes()
    }

    /// Closes one idle connection that counts against a connection limit, in the pool of any
    /// worker.
    ///
    /// Returns whether there was such a connection.
    pub(crate) fn evict_idle_connection(
        &self,
        endpoint: &EndpointState,
        reached_limit: ConnectionLimitReached,
    ) -> bool {
        self.pools
            .iter()
            .any(|pool| pool.evict_idle_connection(endpoint, reached_limit))
    }
}

/// Handle of a running worker. Dropping it stops the worker and waits for its thread.
#[derive(Debug)]
pub struct WorkerHandle {
    pub(crate) worker: Arc<Worker>,
    pub(crate) runtime: Handle,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl WorkerHandle {
    /// Starts `count` workers, each on its own thread.
    ///
    /// # Errors
    /// If the system provides no thread or no event queue.
    pub fn start_all(count: usize, state: &Arc<State>) -> io::Result<Vec<Self>> {
        let pools: Arc<[ConnectionPool]> = (0..count).map(|_| ConnectionPool::default()).collect();
        (0..count)
            .map(|index| Self::start(index, state.clone(), pools.clone()))
            .collect()
    }

    fn start(index: usize, state: Arc<State>, pools: Arc<[ConnectionPool]>) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let worker = Arc::new(Worker {
            state,
            pools,
            index,
            access_log_batch: Notify::new(),
        });
        runtime.spawn(flush_access_log(worker.clone()));
        let (stop, mut stopped) = watch::channel(false);
        let handle = runtime.handle().clone();
        worker.state.lifecycle.record_heartbeat(index, clock::now());
        let sweeping_worker = worker.clone();
        let telemetry = worker.state.telemetry.clone();
        let thread = thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                sweeping_worker.state.memory.register_worker(index);
                runtime.block_on(async move {
                    loop {
                        tokio::select! {
                            () = clock::sleep(SWEEP_INTERVAL) => {
                                let now = clock::now();
                                sweeping_worker.pool().sweep(now);
                                sweeping_worker.state.memory.release_unused_blocks();
                                sweeping_worker.observe_memory();
                                sweeping_worker.state.lifecycle.record_heartbeat(index, now);
                            }
                            _ = stopped.changed() => break,
                        }
                    }
                });
                drop(runtime);
                telemetry.access_log.flush();
            })?;
        Ok(Self {
            worker,
            runtime: handle,
            stop,
            thread: Some(thread),
        })
    }
}

/// Hands over each batch of access log lines some time after its first line. Never returns.
async fn flush_access_log(worker: Arc<Worker>) {
    loop {
        worker.access_log_batch.notified().await;
        clock::sleep(ACCESS_LOG_DELAY).await;
        worker.state.telemetry.access_log.flush();
    }
}

impl Drop for WorkerHandle {
    /// Stops the thread and waits for it. Requests in progress are cut off.
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // The panic hook has already reported a panic of the worker.
            _ = thread.join();
        }
    }
}
