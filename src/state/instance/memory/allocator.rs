//! What the memory budget reads from the allocator and tells it.
//!
//! Nothing here has an effect if jemalloc is not the allocator of the process. The module does
//! not know the budget.

use std::hint::black_box;

use tikv_jemalloc_ctl::{
    Access, AsName, epoch, opt, stats,
    thread::{ThreadLocal, allocatedp, deallocatedp},
};

/// Bytes that a thread allocates between two steps in which jemalloc collects unused blocks of
/// the cache of the thread. One step covers one size of blocks.
const COLLECTION_STEP_BYTES: usize = 64 << 10;

/// Number of block sizes that the cache of a thread holds, rounded up.
const CACHED_BLOCK_SIZES: usize = 64;

/// Name of the number of bytes that the caches of all threads hold. 4096 stands for all arenas.
const ALL_ARENAS_CACHED_BYTES: &[u8] = b"stats.arenas.4096.tcache_bytes\0";

thread_local! {
    /// Counters of allocated and of released bytes, which jemalloc keeps for this thread.
    static COUNTERS: Option<(ThreadLocal<u64>, ThreadLocal<u64>)> =
        allocatedp::read().ok().zip(deallocatedp::read().ok());
}

/// Returns the number of bytes that the thread has allocated and not released.
///
/// A byte counts for the thread that allocates it, and is subtracted from the thread that
/// releases it.
pub(super) fn live_bytes() -> i64 {
    COUNTERS.with(|counters| {
        counters.as_ref().map_or(0, |(allocated, released)| {
            allocated.get().wrapping_sub(released.get()).cast_signed()
        })
    })
}

/// Returns the number of bytes that the process has allocated and not released; `None` if the
/// allocator does not count them.
///
/// It takes the locks of all arenas one after another, which costs some ten microseconds.
pub(super) fn process_live_bytes() -> Option<i64> {
    epoch::advance().ok()?;
    let allocated: usize = stats::allocated::read().ok()?;
    // jemalloc counts blocks in the caches of the threads as allocated.
    let cached: usize = ALL_ARENAS_CACHED_BYTES.name().read().ok()?;
    i64::try_from(allocated.saturating_sub(cached)).ok()
}

/// Makes the allocator return unused pages to the system at once, or else after some seconds.
pub(super) fn return_pages_at_once(is_at_once: bool) {
    let default_millis: Result<isize, _> = b"opt.dirty_decay_ms\0".name().read();
    let (Ok(arenas), Ok(default_millis)) = (opt::narenas::read(), default_millis) else {
        return;
    };
    let millis = if is_at_once { 0 } else { default_millis };
    for arena in 0..arenas {
        let setting = format!("arena.{arena}.dirty_decay_ms\0");
        // An arena that no thread uses yet does not exist, and gets the default.
        _ = setting.as_bytes().name().write(millis);
    }
}

/// Makes the allocator collect the unused blocks that it keeps for the calling thread.
///
/// jemalloc collects them while a thread allocates. A thread without requests allocates nothing.
pub(super) fn collect_unused_blocks() {
    for _ in 0..CACHED_BLOCK_SIZES {
        drop(black_box(Vec::<u8>::with_capacity(COLLECTION_STEP_BYTES)));
    }
}
