//! The real sidecar, in the test process, on port 0.

use std::{
    io::Write,
    net::SocketAddr,
    num::NonZeroUsize,
    sync::{Arc, Mutex},
    time::Duration,
};

use outrigger::{
    app::{App, StartError},
    settings::Settings,
    telemetry::access_log::AccessLogWriter,
};

use super::{Client, ReceivedResponse, TempDirectory, admin, eventually};

/// Running sidecar with its policy directory.
pub(crate) struct Sidecar {
    pub(crate) app: Option<App>,
    pub(crate) directory: TempDirectory,
    access_log: Arc<Mutex<Vec<u8>>>,
}

impl Sidecar {
    /// Starts with one policy file.
    pub(crate) fn start(policy: &str) -> Self {
        let directory = TempDirectory::new();
        directory.write("policy.yaml", policy);
        Self::start_with_settings(directory, |_| {}).unwrap_or_else(|error| panic!("{error:?}"))
    }

    /// Starts with a policy directory and changed settings.
    pub(crate) fn start_with_settings(
        directory: TempDirectory,
        configure: impl FnOnce(&mut Settings),
    ) -> Result<Self, StartError> {
        let mut settings =
            Settings::new(directory.path().to_owned(), "127.0.0.1:0".parse().unwrap());
        settings.worker_threads = NonZeroUsize::new(2).unwrap();
        settings.poll_interval = Duration::from_millis(200);
        configure(&mut settings);
        let access_log = Arc::new(Mutex::new(Vec::new()));
        let app = App::start(
            settings,
            AccessLogWriter::to_sink(AccessLogBuffer(access_log.clone())),
        )?;
        Ok(Self {
            app: Some(app),
            directory,
            access_log,
        })
    }

    pub(crate) fn app(&self) -> &App {
        self.app.as_ref().unwrap()
    }

    pub(crate) fn address(&self, listener: &str) -> SocketAddr {
        self.app().listener_address(listener).unwrap()
    }

    /// Opens a connection to the listener `inbound`.
    pub(crate) fn client(&self) -> Client {
        Client::connect(self.address("inbound"))
    }

    /// Sends one GET request on a new connection.
    pub(crate) fn get(&self, path: &str) -> ReceivedResponse {
        self.client().get(path)
    }

    /// Sends one request to the admin API.
    pub(crate) fn call_admin(&self, method: &str, path: &str) -> ReceivedResponse {
        admin::call_admin(self.app().admin_address(), method, path)
    }

    pub(crate) fn admin_json(&self, path: &str) -> serde_json::Value {
        serde_json::from_str(&self.call_admin("GET", path).text()).unwrap()
    }

    /// Returns the value of a time series, or 0 if it does not exist. `series` is its name with its
    /// labels, in the form of the metrics page.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        admin::metric(self.app().admin_address(), series)
    }

    /// Waits until the sidecar is connected to the engine of the global rate limits.
    #[track_caller]
    pub(crate) fn wait_for_global_rate_limit_connection(&self) {
        eventually("the rate limit engine is connected", || {
            self.metric("outrigger_global_rate_limit_connected") == 1.0
        });
    }

    /// Returns the number of requests to the engine of the global rate limits with this outcome.
    pub(crate) fn global_rate_limit_requests(&self, outcome: &str) -> f64 {
        self.metric(&format!(
            "outrigger_global_rate_limit_requests_total{{outcome=\"{outcome}\"}}"
        ))
    }

    /// Returns the state of the breaker with this name.
    pub(crate) fn breaker(&self, name: &str) -> serde_json::Value {
        let all = self.admin_json("/api/v1/breakers");
        all.as_array()
            .unwrap()
            .iter()
            .find(|breaker| breaker["name"] == name)
            .unwrap_or_else(|| panic!("no breaker {name} in {all}"))
            .clone()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.app().state().drain.in_flight()
    }

    /// Waits until the access log has at least `minimum_lines` lines, and returns all of them.
    pub(crate) fn access_log_lines(&self, minimum_lines: usize) -> Vec<serde_json::Value> {
        let read = || {
            String::from_utf8(self.access_log.lock().unwrap().clone())
                .unwrap()
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect::<Vec<_>>()
        };
        eventually("the access log has enough lines", || {
            read().len() >= minimum_lines
        });
        read()
    }

    /// Replaces the policy file, reloads it, and returns the response of the admin API.
    pub(crate) fn reload(&self, policy: &str) -> ReceivedResponse {
        self.directory.write("policy.yaml", policy);
        self.call_admin("POST", "/api/v1/reload")
    }

    /// Returns the texts of the recent events.
    pub(crate) fn events(&self) -> Vec<String> {
        self.app()
            .state()
            .telemetry
            .recent_events()
            .iter()
            .map(|event| event.event.to_string())
            .collect()
    }
}

struct AccessLogBuffer(Arc<Mutex<Vec<u8>>>);

impl Write for AccessLogBuffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
