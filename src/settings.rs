//! What belongs to the process and not to policy: flags and environment variables, in a form that cannot be wrong.

use std::{
    collections::HashMap, net::SocketAddr, num::NonZeroUsize, path::PathBuf, time::Duration,
};

/// The settings of one instance.
#[derive(Clone)]
pub struct Settings {
    /// The policy directory, or one file.
    pub policy_path: PathBuf,
    /// Where the admin server listens; port 0 lets the system choose.
    pub admin_address: SocketAddr,
    /// Where the last good policies are kept; `None` keeps none.
    pub state_dir: Option<PathBuf>,
    /// Threads of the data plane.
    pub worker_threads: NonZeroUsize,
    /// How often the policy directory is looked at, besides the system's notices.
    pub poll_interval: Duration,
    /// What a caller of a changing admin endpoint must show if it is not on this host.
    pub admin_token: Option<String>,
    /// The zone that this instance is in, to prefer endpoints in it.
    pub zone: Option<String>,
    /// A name server to ask instead of the system's.
    pub name_server: Option<SocketAddr>,
    /// The cgroup whose resources are watched instead of the process's own.
    pub cgroup_path: Option<PathBuf>,
    /// Where a successor asks for the sockets of this process, and where this one asks first; `None` if there is to be no handing over.
    pub handover_path: Option<PathBuf>,
    /// Whether to take the sockets that a supervisor holds.
    pub uses_supervised_sockets: bool,
    /// Whether to heed the signals of the process.
    pub handles_signals: bool,
    /// What `${NAME}` in a policy is taken from.
    pub environment: HashMap<String, String>,
}

impl std::fmt::Debug for Settings {
    /// Leaves out what may be secret.
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
    /// The usual settings for a policy directory.
    #[must_use]
    pub fn new(policy_path: PathBuf, admin_address: SocketAddr) -> Self {
        Self {
            policy_path,
            admin_address,
            state_dir: None,
            worker_threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
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
