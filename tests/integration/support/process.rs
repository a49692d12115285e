//! The real sidecar, in a separate process.

use std::{
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
};

use super::{TempDirectory, admin, cgroup::MemoryCgroup};

const BINARY: &str = env!("CARGO_BIN_EXE_outrigger");

/// Running binary, killed on drop.
pub(crate) struct SidecarProcess {
    pub(crate) child: Child,
    pub(crate) admin_address: String,
    /// Address of the first listener.
    pub(crate) listener_address: SocketAddr,
}

impl SidecarProcess {
    /// Starts with a policy directory.
    pub(crate) fn start(directory: &TempDirectory) -> Self {
        Self::start_with_arguments(directory, &[])
    }

    /// Starts with a policy directory and further arguments.
    pub(crate) fn start_with_arguments(directory: &TempDirectory, arguments: &[&str]) -> Self {
        Self::start_command(Command::new(BINARY), directory, arguments)
    }

    /// Starts in a memory cgroup.
    pub(crate) fn start_in_cgroup(directory: &TempDirectory, cgroup: &MemoryCgroup) -> Self {
        let mut command = Command::new("sh");
        let script = r#"echo $$ > "$0" && exec "$@""#;
        command.args(["-c", script]).arg(cgroup.processes_file());
        command.arg(BINARY);
        Self::start_command(
            command,
            directory,
            &["--workers", "2", "--memory-budget", "32Mi"],
        )
    }

    fn start_command(mut command: Command, directory: &TempDirectory, arguments: &[&str]) -> Self {
        let mut child = command
            .args(["run", "--admin", "127.0.0.1:0", "--policies"])
            .arg(directory.path())
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut address_after = |text: &str| {
            let address = lines.find_map(|line| {
                let line = line.unwrap();
                let (_, rest) = line.split_once(text)?;
                Some(rest.split_whitespace().next().unwrap().to_owned())
            });
            address.unwrap()
        };
        let admin_address = address_after("admin on ");
        let listener_address = address_after("accepts connections on ").parse().unwrap();
        // The process blocks if nothing reads its standard error.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            admin_address,
            listener_address,
        }
    }

    /// Sends a GET request to the admin server, and returns the body of the response.
    pub(crate) fn get_admin(&self, path: &str) -> String {
        admin::call_admin(self.admin_address.parse().unwrap(), "GET", path).text()
    }

    /// Returns the value of a metric series; 0 if it does not exist yet.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        admin::metric(self.admin_address.parse().unwrap(), series)
    }

    /// Sends a signal, for example `-TERM`.
    pub(crate) fn send_signal(&self, signal: &str) {
        assert!(
            Command::new("kill")
                .args([signal, &self.child.id().to_string()])
                .status()
                .unwrap()
                .success()
        );
    }
}

impl Drop for SidecarProcess {
    fn drop(&mut self) {
        // The process may have exited already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Running binary that received its socket by systemd's socket activation, killed on drop.
pub(crate) struct SocketActivatedProcess(Child);

impl SocketActivatedProcess {
    /// Starts with a policy directory and a copy of the socket.
    pub(crate) fn start(directory: &TempDirectory, listener: &TcpListener) -> Self {
        let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 \
                      exec \"$0\" run --admin 127.0.0.1:0 --policies \"$1\"";
        let socket = OwnedFd::from(listener.try_clone().unwrap());
        let mut command = Command::new("sh");
        command.args([
            "-c",
            script,
            env!("CARGO_BIN_EXE_outrigger"),
            &directory.path().display().to_string(),
        ]);
        Self(
            command
                .stdin(Stdio::from(socket))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }

    /// Kills the process with SIGKILL, without a drain.
    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Sends SIGTERM, and waits until the process has exited successfully.
    pub(crate) fn terminate(mut self) {
        assert!(
            Command::new("kill")
                .args(["-TERM", &self.0.id().to_string()])
                .status()
                .unwrap()
                .success()
        );
        assert_eq!(self.0.wait().unwrap().code(), Some(0));
    }
}

impl Drop for SocketActivatedProcess {
    fn drop(&mut self) {
        // The process may have exited already.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}
