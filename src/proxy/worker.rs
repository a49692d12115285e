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

use super::pool::Pool;
use crate::{
    clock,
    state::{
        State,
        endpoint::{EndpointState, TooMany},
    },
};

/// How often idle connections are looked at.
const SWEEP: Duration = Duration::from_secs(1);

/// What the tasks of a worker share.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) state: Arc<State>,
    /// The pools of all workers; a worker takes from and puts into its own.
    pools: Arc<[Pool]>,
    number: usize,
}

impl Worker {
    /// This worker's own pool.
    pub(super) fn pool(&self) -> &Pool {
        &self.pools[self.number]
    }

    /// Closes one idle connection to the backend of an endpoint, wherever it is kept.
    pub(super) fn evict_one(&self, endpoint: &EndpointState, reached: TooMany) -> bool {
        self.pools
            .iter()
            .any(|pool| pool.evict_one(endpoint, reached))
    }
}

/// A running worker.
#[derive(Debug)]
pub struct WorkerHandle {
    pub(super) worker: Arc<Worker>,
    pub(super) runtime: Handle,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl WorkerHandle {
    /// Starts so many workers.
    ///
    /// # Errors
    /// If the system gives no thread or no event queue.
    pub fn start_all(count: usize, state: &Arc<State>) -> io::Result<Vec<Self>> {
        let pools: Arc<[Pool]> = (0..count).map(|_| Pool::default()).collect();
        (0..count)
            .map(|number| Self::start(number, state.clone(), pools.clone()))
            .collect()
    }

    fn start(number: usize, state: Arc<State>, pools: Arc<[Pool]>) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let worker = Arc::new(Worker {
            state,
            pools,
            number,
        });
        let (stop, mut stopped) = watch::channel(false);
        let handle = runtime.handle().clone();
        worker.state.lifecycle.beat(number, clock::now());
        let swept = worker.clone();
        let thread = thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || {
                runtime.block_on(async move {
                    loop {
                        tokio::select! {
                            () = clock::sleep(SWEEP) => {
                                let now = clock::now();
                                swept.pool().sweep(now);
                                swept.state.lifecycle.beat(number, now);
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
