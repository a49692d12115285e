//! Settings of the process that do not belong to a policy.
//!
//! The command line and environment variables provide them, and they stay the same until the
//! process ends. Their types exclude most invalid values, so the rest of the code does not
//! check them again. This module does not read flags or environment variables itself.

use std::{
    collections::HashMap, net::SocketAddr, num::NonZeroUsize, path::PathBuf, time::Duration,
};

/// Settings of one instance, constant while it runs.
#[derive(Clone)]
pub struct Settings {
    /// Policy directory, or a single policy file.
    pub policy_path: PathBuf,
    /// Address on which the admin server listens; with port 0 the system chooses a port.
    pub admin_address: SocketAddr,
    /// Directory for a copy of the last valid policies; `None` stores no copy. A restart with
    /// an invalid policy file starts from that copy.
    pub state_dir: Option<PathBuf>,
    /// Number of worker threads of the data plane.
    pub worker_threads: NonZeroUsize,
    /// Maximum number of bytes that the data plane holds; `None` uses half of the memory limit
    /// of the process, or 256 MiB without a limit.
    pub memory_budget: Option<u64>,
    /// Interval at which policy, endpoint and certificate files are polled. File system events
    /// trigger reads of policies and endpoints earlier.
    pub poll_interval: Duration,
    /// Bearer token for admin requests that change something. Requests without it are accepted
    /// only from loopback addresses, and only without an `Origin` header, which browsers send.
    pub admin_token: Option<String>,
    /// Availability zone of this instance; load balancing can prefer endpoints in it.
    pub zone: Option<String>,
    /// Name server for DNS discovery; `None` uses those of the system.
    pub name_server: Option<SocketAddr>,
    /// cgroup directory whose resources are monitored; `None` uses the cgroup of this process.
    pub cgroup_path: Option<PathBuf>,
    /// Path of the Unix socket over which listening sockets are handed over; `None` disables
    /// it. A new process requests the sockets of the running process there, and later provides
    /// them to its successor.
    pub handover_path: Option<PathBuf>,
    /// Whether to use listening sockets that a supervisor holds (`sd_listen_fds` of systemd).
    pub uses_supervised_sockets: bool,
    /// Whether signals to the process trigger a reload or a drain.
    pub handles_signals: bool,
    /// Values for references of the form `${NAME}` in policies.
    pub environment: HashMap<String, String>,
}

impl std::fmt::Debug for Settings {
    /// Omits fields that may hold secrets, such as the admin token and the environment.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("policies", &self.policy_path)
            .field("admin", &self.admin_address)
            .field("state_dir", &self.state_dir)
            .field("workers", &self.worker_threads)
            .field("poll_interval", &self.poll_interval)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// Creates the default settings for a policy directory or file.
    ///
    /// There is one worker per available CPU, and files are polled every 5 seconds. All
    /// optional features are disabled.
    #[must_use]
    pub fn new(policy_path: PathBuf, admin_address: SocketAddr) -> Self {
        Self {
            policy_path,
            admin_address,
            state_dir: None,
            worker_threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            memory_budget: None,
            poll_interval: Duration::from_secs(5),
            admin_token: None,
            zone: None,
            name_server: None,
            cgroup_path: None,
            handover_path: None,
            uses_supervised_sockets: false,
            handles_signals: false,
            environment: HashMap::new(),
        }
    }
}
