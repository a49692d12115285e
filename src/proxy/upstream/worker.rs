//! A worker of the data plane: a thread with a runtime of its own, a pool of its own, and a share of every listener.
//!
//! One single-threaded runtime per worker: nothing is stolen, no request wakes another thread, and a request and its
//! connections stay on one core.

use std::{
    io,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    runtime::{self, Handle},
    sync::watch,
};

use crate::{
    clock,
    proxy::upstream::pool::ConnectionPool,
    state::{
        State,
        topology::endpoint::{ConnectionLimitReached, EndpointState},
    },
};

/// How often idle connections are looked at.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// What the tasks of a worker share.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) state: Arc<State>,
    /// The pools of all workers; a worker takes from and puts into its own.
    pools: Arc<[ConnectionPool]>,
    index: usize,
}

impl Worker {
    /// This worker's own pool.
    pub(crate) fn pool(&self) -> &ConnectionPool {
        &self.pools[self.index]
    }

    /// Closes one idle connection to the backend of an endpoint, wherever it is kept.
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

/// A running worker.
#[derive(Debug)]
pub struct WorkerHandle {
    pub(crate) worker: Arc<Worker>,
    pub(crate) runtime: Handle,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl WorkerHandle {
    /// Starts so many workers.
    ///
    /// # Errors
    /// If the system gives no thread or no event queue.
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
        });
        let (stop, mut stopped) = watch::channel(false);
        let handle = runtime.handle().clone();
        worker.state.lifecycle.record_heartbeat(index, clock::now());
        let sweeping_worker = worker.clone();
        let thread = thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                runtime.block_on(async move {
                    loop {
                        tokio::select! {
                            () = clock::sleep(SWEEP_INTERVAL) => {
                                let now = clock::now();
                                sweeping_worker.pool().sweep(now);
                                sweeping_worker.state.lifecycle.record_heartbeat(index, now);
                            }
                            _ = stopped.changed() => break,
                        }
                    }
                });
            })?;
        Ok(Self {
            worker,
            runtime: handle,
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for WorkerHandle {
    /// Ends the thread; requests that are still being served are cut off.
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // A worker that panicked has said so.
            _ = thread.join();
        }
    }
}
