//! A real `redis-server` or `valkey-server` on a free port. If neither is installed, the tests that
//! need it are skipped, with a message on the terminal.

use std::{
    io::Write,
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use redis::{Client, FromRedisValue, RedisResult};

use super::{TEST_TIMEOUT, eventually, start_on_free_port};

/// Running server, killed on drop.
pub(crate) struct RedisServer {
    child: Child,
    pub(crate) address: SocketAddr,
    password: Option<&'static str>,
}

impl RedisServer {
    /// Starts a server, if one is installed.
    pub(crate) fn start(password: Option<&'static str>) -> Option<Self> {
        start_on_free_port(|address| Self::start_at(address, password))
    }

    fn start_at(address: SocketAddr, password: Option<&'static str>) -> Option<Self> {
        let run = |program: &str| {
            let mut command = Command::new(program);
            command.args([
                "--save",
                "",
                "--appendonly",
                "no",
                "--bind",
                "127.0.0.1",
                "--port",
                &address.port().to_string(),
            ]);
            command.args(
                password
                    .into_iter()
                    .flat_map(|password| ["--requirepass", password]),
            );
            command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()
        };
        let Ok(child) = run("redis-server").or_else(|_| run("valkey-server")) else {
            // The test runner does not capture a direct write to standard error.
            _ = writeln!(
                std::io::stderr(),
                "SKIPPED: neither redis-server nor valkey-server is installed; \
                 run scripts/clients first"
            );
            return None;
        };
        let mut redis = Self {
            child,
            address,
            password,
        };
        let mut has_exited = false;
        eventually("redis-server responds to PING or exits", || {
            has_exited = redis.child.try_wait().unwrap().is_some();
            has_exited || redis.try_run_command::<String>(0, "PING").is_ok()
        });
        (!has_exited).then_some(redis)
    }

    /// Runs one command. Spaces separate its arguments.
    pub(crate) fn run_command<T: FromRedisValue>(&self, command: &str) -> T {
        self.try_run_command(0, command).unwrap()
    }

    /// Returns the keys of a database.
    pub(crate) fn all_keys(&self, database: u32) -> Vec<String> {
        self.try_run_command(database, "KEYS *").unwrap()
    }

    fn try_run_command<T: FromRedisValue>(&self, database: u32, command: &str) -> RedisResult<T> {
        let mut connection = Client::open(format!("redis://{}", self.address))?
            .get_connection_with_timeout(TEST_TIMEOUT)?;
        if let Some(password) = self.password {
            redis::cmd("AUTH").arg(password).exec(&mut connection)?;
        }
        redis::cmd("SELECT").arg(database).exec(&mut connection)?;
        let mut words = command.split(' ');
        redis::cmd(words.next().unwrap())
            .arg(words.collect::<Vec<_>>())
            .query(&mut connection)
    }

    /// Stops the process: connections stay open, and no command gets a response until `resume`.
    pub(crate) fn stall(&self) {
        self.send_signal("-STOP");
    }

    pub(crate) fn resume(&self) {
        self.send_signal("-CONT");
    }

    /// Kills the server, and starts an empty one on the same address.
    pub(crate) fn restart(mut self) -> Self {
        let (address, password) = (self.address, self.password);
        self.stop();
        let mut started = None;
        eventually("redis-server starts on the same address", || {
            started = Self::start_at(address, password);
            started.is_some()
        });
        started.unwrap()
    }

    pub(crate) fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn send_signal(&self, signal: &str) {
        assert!(
            Command::new("kill")
                .args([signal, &self.child.id().to_string()])
                .status()
                .unwrap()
                .success()
        );
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // The process may have exited already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
