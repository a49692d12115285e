//! The real sidecar, in a separate process.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
};

use super::TempDirectory;

/// Running binary, killed on drop.
pub(crate) struct SidecarProcess {
    pub(crate) child: Child,
    pub(crate) admin_address: String,
}

impl SidecarProcess {
    /// Starts with a policy directory.
    pub(crate) fn start(directory: &TempDirectory) -> Self {
        Self::start_with_arguments(directory, &[])
    }

    /// Starts with a policy directory and further arguments.
    pub(crate) fn start_with_arguments(directory: &TempDirectory, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_outrigger"))
            .args([
                "run",
                "--admin",
                "127.0.0.1:0",
                "--policies",
                &directory.path().display().to_string(),
            ])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let admin_address = lines
            .find_map(|line| {
                line.unwrap()
                    .split_once("admin on ")
                    .map(|(_, rest)| rest.split_whitespace().next().unwrap().to_owned())
            })
            .unwrap();
        // The process blocks if nothing reads its standard error.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            admin_address,
        }
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
