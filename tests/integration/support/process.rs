//! The real sidecar, as a process of its own.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use super::Directory;

/// The binary, running; killed if a test gives up.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) admin: String,
}

impl Running {
    /// Starts under a directory.
    pub(crate) fn start(directory: &Directory) -> Self {
        Self::start_with(directory, &[])
    }

    /// Starts under a directory, with more arguments.
    pub(crate) fn start_with(directory: &Directory, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_outrigger"))
            .args(["run", "--admin", "127.0.0.1:0", "--policies", &directory.path().display().to_string()])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let admin = lines.find_map(|line| line.unwrap().split_once("admin on ").map(|(_, rest)| rest.split_whitespace().next().unwrap().to_owned())).unwrap();
        // Somebody has to read what else is written.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, admin }
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended, as it should.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
