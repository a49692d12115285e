//! What the memory budget reads from the allocator and tells it.
//!
//! Nothing here has an effect if jemalloc is not the allocator of the process. The module does
//! not know the budget.

use std::hint::black_box;

use tikv_jemalloc_ctl::{
    Access, AsName, epoch, opt,
    thread::{ThreadLocal, allocatedp, deallocatedp},
};

/// Bytes that a thread allocates between two steps in which jemalloc collects unused blocks of
/// the cache of the thread. One step covers one size of blocks.
const COLLECTION_STEP_BYTES: usize = 64 << 10;

/// Number of block sizes that the cache of a thread holds, rounded up.
const CACHED_BLOCK_SIZES: usize = 64;

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

/// Returns the arena from which the calling thread allocates; `None` if jemalloc does not say it.
pub(super) fn thread_arena() -> Option<u32> {
    b"thread.arena\0".name().read().ok()
}

/// Returns the number of bytes that were allocated from the arenas and not released; `None` if
/// the allocator does not count them.
///
/// It takes the locks of all arenas one after another, which costs some ten microseconds.
pub(super) fn live_bytes_of_arenas(arenas: impl Iterator<Item = u32>) -> Option<i64> {
    epoch::advance().ok()?;
    let statistic = |arena: u32, name: &str| -> Option<usize> {
        let name = format!("stats.arenas.{arena}.{name}\0");
        name.as_bytes().name().read().ok()
    };
    let live_bytes = arenas.map(|arena| {
        let small = statistic(arena, "small.allocated")?;
        let large = statistic(arena, "large.allocated")?;
        // jemalloc counts blocks in the caches of the threads as allocated.
        let cached = statistic(arena, "tcache_bytes")?;
        i64::try_from((small + large).saturating_sub(cached)).ok()
    });
    live_bytes.sum()
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
