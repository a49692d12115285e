//! A memory cgroup for one process, in cgroup v2 or v1.

use std::{fs, io::Write as _, path::PathBuf, process::Command};

/// Cgroup with a memory limit, removed on drop. Its processes must have ended by then.
pub(crate) struct MemoryCgroup(PathBuf);

impl MemoryCgroup {
    /// Creates a cgroup. Returns `None`, and says so loudly, if this machine does not permit it.
    pub(crate) fn create(limit_bytes: u64) -> Option<Self> {
        let name = format!("outrigger-test-{}", std::process::id());
        for (hierarchy, file) in [
            ("/sys/fs/cgroup", "memory.max"),
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ] {
            let cgroup = Self(PathBuf::from(hierarchy).join(&name));
            // A cgroup without the file is not one of memory. The drop removes it again.
            let is_created = fs::create_dir(&cgroup.0).is_ok()
                && cgroup.0.join(file).exists()
                && fs::write(cgroup.0.join(file), limit_bytes.to_string()).is_ok()
                && cgroup.accepts_processes();
            if is_created {
                return Some(cgroup);
            }
        }
        // The test runner does not capture a direct write to standard error.
        _ = writeln!(
            std::io::stderr(),
            "SKIPPED: no memory cgroup can be made here; attacks on the memory were NOT tested"
        );
        None
    }

    fn accepts_processes(&self) -> bool {
        let script = r#"echo $$ > "$0""#;
        let mut command = Command::new("sh");
        let status = command
            .args(["-c", script])
            .arg(self.processes_file())
            .status();
        status.is_ok_and(|status| status.success())
    }

    /// Returns the file to which a process writes its id to enter the cgroup.
    pub(crate) fn processes_file(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // An empty cgroup remains if a process of it has not ended.
        _ = fs::remove_dir(&self.0);
    }
}
