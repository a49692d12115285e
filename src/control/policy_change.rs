//! The wait of a background task for the next policy set.

use tokio::{sync::watch, task::JoinSet};

/// Waits for the next change of the active policy.
///
/// Returns `true` on a change. Returns `false` if a task in `tasks` has panicked, or if the
/// sender of generations is gone; the caller then ends.
pub(super) async fn wait_for_policy_change(
    generations: &mut watch::Receiver<u64>,
    tasks: &mut JoinSet<()>,
) -> bool {
    loop {
        tokio::select! {
            changed = generations.changed() => return changed.is_ok(),
            Some(ended) = tasks.join_next() => if ended.is_err_and(|error| error.is_panic()) {
                return false;
            }
        }
    }
}
