//! A real redis-server on a free port, stopped by its id. Without one on the machine, tests that need it are skipped, loudly.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
};

use super::{PATIENCE, eventually};

pub(crate) struct Redis {
    child: Child,
    pub(crate) address: SocketAddr,
    password: Option<&'static str>,
}

impl Redis {
    /// Starts one, if there is one.
    pub(crate) fn start(password: Option<&'static str>) -> Option<Self> {
        // Somebody may take the port between asking for it and using it; then another is tried.
        (0..5).find_map(|_| {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            Self::start_at(address, password)
        })
    }

    fn start_at(address: SocketAddr, password: Option<&'static str>) -> Option<Self> {
        let run = |program: &str| {
            let mut command = Command::new(program);
            command.args(["--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--port", &address.port().to_string()]);
            command.args(password.into_iter().flat_map(|password| ["--requirepass", password]));
            command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()
        };
        let Ok(child) = run("redis-server").or_else(|_| run("valkey-server")) else {
            // Written past the capture of the test runner.
            _ = writeln!(std::io::stderr(), "SKIPPED: there is neither redis-server nor valkey-server; run scripts/clients first");
            return None;
        };
        let mut redis = Self { child, address, password };
        let mut is_gone = false;
        eventually("redis-server answers", || {
            is_gone = redis.child.try_wait().unwrap().is_some();
            is_gone || redis.say("PING").is_some_and(|answer| answer.starts_with("+PONG") || answer.starts_with("-NOAUTH"))
        });
        (!is_gone).then_some(redis)
    }

    /// One command, as its answer begins.
    pub(crate) fn say(&self, command: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let login = self.password.map(|password| format!("AUTH {password}\r\n")).unwrap_or_default();
        stream.write_all(format!("{login}{command}\r\n").as_bytes()).ok()?;
        let mut answer = Vec::new();
        let lines = 1 + usize::from(self.password.is_some());
        while answer.iter().filter(|byte| **byte == b'\n').count() < lines {
            let mut piece = [0; 4096];
            let read = stream.read(&mut piece).ok().filter(|read| *read > 0)?;
            answer.extend_from_slice(&piece[..read]);
        }
        let text = String::from_utf8_lossy(&answer).into_owned();
        Some(if self.password.is_some() { text.split_once('\n').unwrap().1.to_owned() } else { text })
    }

    /// The keys of a database.
    pub(crate) fn all_keys(&self, database: u32) -> Vec<String> {
        let mut connection = ::redis::Client::open(format!("redis://{}", self.address)).unwrap().get_connection().unwrap();
        if let Some(password) = self.password {
            let _: String = ::redis::cmd("AUTH").arg(password).query(&mut connection).unwrap();
        }
        let _: String = ::redis::cmd("SELECT").arg(database).query(&mut connection).unwrap();
        ::redis::cmd("KEYS").arg("*").query(&mut connection).unwrap()
    }

    /// It keeps its connections and says nothing more, until it is resumed.
    pub(crate) fn stall(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn resume(&self) {
        self.signal("-CONT");
    }

    /// It is killed, and another takes its place, empty.
    pub(crate) fn restart(mut self) -> Self {
        let (address, password) = (self.address, self.password);
        self.stop();
        let mut started = None;
        eventually("redis-server starts at the same place", || {
            started = Self::start_at(address, password);
            started.is_some()
        });
        started.unwrap()
    }

    pub(crate) fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap().success());
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // It may be gone already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
