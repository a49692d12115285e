//! `outrigger demo`: shows the sidecar at work within a minute, without other software.
//!
//! It runs an embedded app, the real sidecar with the real policies in front of it, and a small
//! steady load. A fault of the app starts by itself:
//!
//! 1. The app fails every request, and the breaker opens.
//! 2. Clients get immediate rejections.
//! 3. The fault ends, and the breaker becomes half-open, then closed.
//!
//! The introduction lists commands to try meanwhile.

mod app;
mod load;
mod screen;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Args;

use crate::{
    app::App,
    cli::{
        arguments::read_environment,
        demo::{
            app::{DemoFault, FaultSwitch},
            load::DemoLoad,
            screen::{DemoAddresses, Screen},
        },
        output::{CommandOutcome, print_error},
        run,
    },
    clock,
    settings::Settings,
    telemetry::access_log::AccessLogWriter,
};

/// Shipped policy, used if the policy directory does not exist.
const DEFAULT_POLICY: &str = include_str!("../../policies/default.yaml");

/// Start and end of the fault, measured from the start of the demo.
const FAULT_WINDOW: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(14));

/// Interval between two updates of the screen.
const FRAME_INTERVAL: Duration = Duration::from_millis(250);

/// Duration, load and policies of the demo.
#[derive(Debug, Args)]
pub(super) struct DemoCommand {
    /// Ends the demo after this number of seconds. Without it, the demo runs until Ctrl-C.
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Sends no load and injects no fault.
    #[arg(long)]
    no_load: bool,
    /// Policy directory. If it does not exist, the shipped policy is used from a temporary
    /// directory.
    #[arg(
        long,
        env = "OUTRIGGER_POLICIES",
        default_value = "policies",
        value_name = "PATH"
    )]
    policies: PathBuf,
}

impl DemoCommand {
    pub(super) fn run(self) -> CommandOutcome {
        let runtime = match tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
        {
            Ok(runtime) => runtime,
            Err(error) => {
                print_error(&format!("outrigger: {error}"));
                return CommandOutcome::InternalError;
            }
        };
        runtime.block_on(self.run_demo())
    }

    async fn run_demo(self) -> CommandOutcome {
        let faults = Arc::new(FaultSwitch::default());
        let app_address = match app::start(faults.clone()).await {
            Ok(address) => address,
            Err(error) => {
                print_error(&format!(
                    "outrigger: the demo's app cannot be started: {error}"
                ));
                return CommandOutcome::Unavailable;
            }
        };
        let policies = match prepare_policies(&self.policies) {
            Ok(policies) => policies,
            Err(error) => {
                print_error(&format!(
                    "outrigger: the policies of the demo cannot be written: {error}"
                ));
                return CommandOutcome::Unavailable;
            }
        };
        let mut settings = Settings::new(policies.clone(), preferred_or_any_port(16_090));
        settings.environment = read_environment();
        for (name, value) in [
            ("APP", app_address),
            ("UPSTREAM", app_address),
            ("INBOUND", preferred_or_any_port(16_001)),
            ("OUTBOUND", preferred_or_any_port(16_002)),
        ] {
            settings
                .environment
                .insert(format!("OUTRIGGER_{name}"), value.to_string());
        }
        let sidecar = match App::start(settings, AccessLogWriter::disabled()) {
            Ok(sidecar) => sidecar,
            Err(error) => return run::report_start_error(&error),
        };
        let inbound = sidecar.listener_address("inbound").unwrap_or(app_address);
        let outbound = sidecar.listener_address("outbound").unwrap_or(inbound);
        let mut screen = Screen::new(sidecar.state().clone());
        let addresses = DemoAddresses {
            app: app_address,
            inbound,
            outbound,
            admin: sidecar.admin_address(),
        };
        screen.print_introduction(&addresses, &policies);
        let load = (!self.no_load).then(|| DemoLoad::start(inbound));
        self.run_scenario(&mut screen, load.as_ref(), &faults).await;
        screen.finish();
        sidecar.drain();
        drop(sidecar);
        CommandOutcome::Success
    }

    async fn run_scenario(
        &self,
        screen: &mut Screen,
        load: Option<&DemoLoad>,
        faults: &FaultSwitch,
    ) {
        let began = clock::now();
        let mut has_begun = false;
        let mut has_ended = load.is_none();
        loop {
            let elapsed = clock::now().saturating_duration_since(began);
            if !has_begun && !has_ended && elapsed >= FAULT_WINDOW.0 {
                has_begun = true;
                faults.set(DemoFault::Errors);
                screen.print_announcement(
                    "a fault starts: the app responds to every request with 503",
                );
            }
            if has_begun && !has_ended && elapsed >= FAULT_WINDOW.1 {
                has_ended = true;
                faults.set(DemoFault::None);
                screen.print_announcement(
                    "the fault ends; the breaker detects the recovery by itself",
                );
            }
            screen.draw(load, faults.current());
            if self
                .seconds
                .is_some_and(|seconds| elapsed >= Duration::from_secs(seconds))
            {
                return;
            }
            tokio::select! {
                () = clock::sleep(FRAME_INTERVAL) => {}
                // If the signal cannot be awaited, the demo has no other way to end, so it ends
                // here.
                _ = tokio::signal::ctrl_c() => return,
            }
        }
    }
}

/// Returns the policy directory, or a temporary one with the shipped policy if it does not exist.
fn prepare_policies(wanted: &Path) -> std::io::Result<PathBuf> {
    if wanted.exists() {
        return Ok(wanted.to_owned());
    }
    let directory = std::env::temp_dir().join(format!("outrigger-demo-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    std::fs::write(directory.join("default.yaml"), DEFAULT_POLICY)?;
    Ok(directory)
}

/// Returns the preferred port of the loopback address if it is free, and port 0 otherwise.
fn preferred_or_any_port(port: u16) -> SocketAddr {
    let preferred = SocketAddr::from(([127, 0, 0, 1], port));
    if std::net::TcpListener::bind(preferred).is_ok() {
        preferred
    } else {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }
}
