//! Finds the memory limit of the process, from which the default of the memory budget follows.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Budget in bytes if the process has no memory limit.
const DEFAULT_BUDGET_BYTES: u64 = 256 << 20;

/// Directory at which the hierarchies of the cgroups are mounted.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Returns the default budget: half of the memory limit of this process, or else 256 MiB.
///
/// The other half is for policies, buffers of the kernel, code, and the memory that an allocator
/// cannot return.
#[must_use]
pub fn default_budget() -> u64 {
    let own_cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    memory_limit(&own_cgroups, Path::new(CGROUP_ROOT))
        .map_or(DEFAULT_BUDGET_BYTES, |limit| limit / 2)
}

/// Returns the lowest memory limit of the cgroups in `own_cgroups` (the text of
/// `/proc/self/cgroup`) and their parents, in cgroup v2 and v1; `None` without a limit.
fn memory_limit(own_cgroups: &str, root: &Path) -> Option<u64> {
    let limits = own_cgroups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let (hierarchy, file) = if controllers.is_empty() {
            (root.to_owned(), "memory.max")
        } else if controllers.split(',').any(|name| name == "memory") {
            (root.join("memory"), "memory.limit_in_bytes")
        } else {
            return None;
        };
        lowest_limit(&hierarchy, path, file)
    });
    limits.min()
}

/// Returns the lowest limit of a cgroup and its parents.
///
/// Without a cgroup namespace, a container reads a path that is not mounted inside it. Its own
/// limit is then at the root of the hierarchy, which is always read.
fn lowest_limit(hierarchy: &Path, path: &str, file: &str) -> Option<u64> {
    let own: PathBuf = hierarchy.join(path.trim_start_matches('/'));
    let directories = own
        .ancestors()
        .take_while(|directory| directory.starts_with(hierarchy));
    // cgroup v1 states the absence of a limit as the highest multiple of the page size.
    let limits = directories.filter_map(|directory| {
        let text = fs::read_to_string(directory.join(file)).ok()?;
        text.trim().parse().ok().filter(|limit| *limit < 1 << 60)
    });
    limits.min()
}

#[cfg(test)]
mod tests;
