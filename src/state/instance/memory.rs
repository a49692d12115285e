//! The memory budget: how many bytes the data plane holds, and the level of memory pressure.
//!
//! Every byte that a client can make the process hold is allocated on a worker thread: heads,
//! bodies, queues, HTTP/2 windows, TLS buffers and keys. The allocator counts the bytes of each
//! thread (`allocator`), so no buffer needs bookkeeping of its own. A worker publishes its
//! count when it has changed by 64 KiB.
//!
//! A byte that a worker allocates and another thread releases would shift these counts for ever.
//! Once per second they are therefore corrected by the counts of the arenas: each thread
//! allocates from an arena of its own, and a released byte returns to the arena it came from.
//!
//! Policies, probes and the admin API are allocated by other threads and do not count. The
//! difference between the budget and the memory limit of the process is their reserve. The module
//! does not close connections and does not reject requests.

mod allocator;

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU8, AtomicU32, Ordering},
};

use tokio::sync::watch;

use crate::{
    resilience::memory_pressure::MemoryLevel,
    telemetry::{
        Telemetry, event::Event, label::LabelledCounters, memory_measure::MemoryMeasure,
        metric_names as name,
    },
};

/// Stands for the arena of a worker that has not registered.
const NO_ARENA: u32 = u32::MAX;

/// Change of a worker's count at which the worker publishes it, in bytes.
const PUBLISHED_STEP_BYTES: u64 = 64 << 10;

/// Part of the budget that the kernel may queue for one client, as its denominator, and the
/// bounds of the result in bytes. A client on a fast connection needs no more than the maximum.
const UNSENT_BYTES_FRACTION: u64 = 512;
const MIN_UNSENT_BYTES: u32 = 16 << 10;
const MAX_UNSENT_BYTES: u32 = 256 << 10;

/// Time after the end of memory pressure for which the workers release blocks that they do not
/// use, in seconds.
const RELEASE_SECONDS: u32 = 30;

/// Memory budget of the data plane, shared by all workers.
#[derive(Debug)]
pub struct MemoryBudget {
    budget_bytes: u64,
    /// Published count of each worker. It is negative for a worker that has released more bytes
    /// of others than it holds itself.
    worker_bytes: Box<[AtomicI64]>,
    /// Arena from which each worker allocates, or [`NO_ARENA`].
    worker_arenas: Box<[AtomicU32]>,
    /// Difference between the bytes in the arenas of the workers and the sum of `worker_bytes`.
    correction_bytes: AtomicI64,
    /// Level in force, as its position in [`MemoryLevel::ALL`].
    level: AtomicU8,
    /// Highest level since the last report, as its position in [`MemoryLevel::ALL`].
    highest_level: AtomicU8,
    /// Number of seconds for which the workers still release blocks that they do not use.
    seconds_to_release: AtomicU32,
    level_sender: watch::Sender<MemoryLevel>,
    telemetry: Arc<Telemetry>,
    measures: LabelledCounters<MemoryMeasure>,
}

impl MemoryBudget {
    /// Creates the budget of `budget_bytes` for a number of workers.
    #[must_use]
    pub fn new(budget_bytes: u64, workers: usize, telemetry: Arc<Telemetry>) -> Self {
        let measures = LabelledCounters::new(|measure| {
            telemetry
                .metrics
                .counter(name::MEMORY_MEASURES, &[("measure", measure)])
        });
        Self {
            budget_bytes,
            worker_bytes: (0..workers).map(|_| AtomicI64::new(0)).collect(),
            worker_arenas: (0..workers).map(|_| AtomicU32::new(NO_ARENA)).collect(),
            correction_bytes: AtomicI64::new(0),
            level: AtomicU8::new(0),
            highest_level: AtomicU8::new(0),
            seconds_to_release: AtomicU32::new(0),
            level_sender: watch::channel(MemoryLevel::Normal).0,
            telemetry,
            measures,
        }
    }

    /// Returns the budget, in bytes.
    #[must_use]
    pub fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }

    /// Returns the number of bytes that the kernel may queue for one client and that it has not
    /// sent yet.
    ///
    /// Buffers of the kernel count against a memory limit in cgroup v2, and the kernel would
    /// queue several MiB for a client that does not read.
    #[must_use]
    pub fn max_unsent_bytes(&self) -> u32 {
        let share = self.budget_bytes / UNSENT_BYTES_FRACTION;
        u32::try_from(share)
            .unwrap_or(u32::MAX)
            .clamp(MIN_UNSENT_BYTES, MAX_UNSENT_BYTES)
    }

    /// Returns the number of bytes that count, as the workers published them.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        let used = self.published_bytes() + self.correction_bytes.load(Ordering::Relaxed);
        u64::try_from(used).unwrap_or(0)
    }

    /// Returns the sum of the published counts of the workers.
    fn published_bytes(&self) -> i64 {
        let published = self.worker_bytes.iter();
        published.map(|bytes| bytes.load(Ordering::Relaxed)).sum()
    }

    /// Registers the calling thread as a worker. A worker calls it before anything else.
    pub fn register_worker(&self, worker: usize) {
        let arena = allocator::thread_arena().unwrap_or(NO_ARENA);
        self.worker_arenas[worker].store(arena, Ordering::Relaxed);
    }

    /// Corrects the counts of the workers by the counts of their arenas.
    fn correct(&self) {
        let arenas = self.worker_arenas.iter();
        let arenas = arenas
            .map(|arena| arena.load(Ordering::Relaxed))
            .filter(|arena| *arena != NO_ARENA);
        if let Some(live_bytes) = allocator::live_bytes_of_arenas(arenas) {
            let correction = live_bytes - self.published_bytes();
            self.correction_bytes.store(correction, Ordering::Relaxed);
        }
    }

    /// Returns the level in force.
    #[must_use]
    pub fn level(&self) -> MemoryLevel {
        MemoryLevel::ALL[usize::from(self.level.load(Ordering::Relaxed))]
    }

    /// Publishes the bytes of the calling worker if they have changed, and updates the level.
    ///
    /// Without a change it reads two counters of the thread.
    pub fn observe(&self, worker: usize) {
        let (published, bytes) = (&self.worker_bytes[worker], allocator::live_bytes());
        if bytes.abs_diff(published.load(Ordering::Relaxed)) < PUBLISHED_STEP_BYTES {
            return;
        }
        published.store(bytes, Ordering::Relaxed);
        self.update_level();
    }

    fn update_level(&self) {
        // The lock of the sender orders the updates of several workers.
        let update = |level: &mut MemoryLevel| {
            let next = level.next(self.used_bytes(), self.budget_bytes);
            let is_changed = next != *level;
            *level = next;
            self.level.store(next as u8, Ordering::Relaxed);
            self.highest_level.fetch_max(next as u8, Ordering::Relaxed);
            is_changed
        };
        let used = self.used_bytes();
        if self.level().next(used, self.budget_bytes) != self.level() {
            self.level_sender.send_if_modified(update);
        }
    }

    /// Releases blocks that the allocator keeps for the calling worker and that the worker does
    /// not use.
    ///
    /// Each worker calls it once per second. It does nothing if there was no memory pressure in
    /// the last 30 seconds.
    pub fn release_unused_blocks(&self) {
        if self.seconds_to_release.load(Ordering::Relaxed) > 0 {
            allocator::collect_unused_blocks();
        }
    }

    /// Waits until there is memory pressure.
    pub async fn wait_for_pressure(&self) {
        let mut level = self.level_sender.subscribe();
        // The sender lives as long as this value.
        _ = level.wait_for(|level| *level > MemoryLevel::Normal).await;
    }

    /// Makes the allocator return unused pages at once while there is memory pressure. Never
    /// returns.
    pub async fn return_pages_under_pressure(&self) {
        let mut level = self.level_sender.subscribe();
        loop {
            self.wait_for_pressure().await;
            allocator::return_pages_at_once(true);
            _ = level.wait_for(|level| *level == MemoryLevel::Normal).await;
            allocator::return_pages_at_once(false);
        }
    }

    /// Counts a measure against memory pressure.
    pub fn record(&self, measure: MemoryMeasure) {
        self.measures.increment(measure);
    }

    /// Corrects the counts, and emits an event if the highest level since the last call differs
    /// from `reported`, the level of the last event. Returns the level that is now reported.
    ///
    /// The control plane calls it once per second, so that a level that changes often does not
    /// flood the log.
    pub fn report_level(&self, reported: MemoryLevel) -> MemoryLevel {
        self.correct();
        self.update_level();
        let level = self.level();
        let highest = self.highest_level.swap(level as u8, Ordering::Relaxed);
        let highest = MemoryLevel::ALL[usize::from(highest)].max(level);
        let seconds_to_release = if highest > MemoryLevel::Normal {
            RELEASE_SECONDS
        } else {
            self.seconds_to_release
                .load(Ordering::Relaxed)
                .saturating_sub(1)
        };
        self.seconds_to_release
            .store(seconds_to_release, Ordering::Relaxed);
        if highest != reported {
            self.telemetry.emit(Event::MemoryLevelChanged {
                from: reported,
                to: highest,
                used_bytes: self.used_bytes(),
                budget_bytes: self.budget_bytes,
            });
        }
        highest
    }
}
