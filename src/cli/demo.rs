//! `outrigger demo`: the sidecar at work, within a minute, without anything else.
//!
//! An embedded app, the real sidecar in front of it under the real policies, and a small steady load. A fault begins by itself: the
//! breaker opens, callers get quick refusals, the fault ends, half-open, closed. Meanwhile there are things to try.

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
        CommandOutcome,
        demo::{
            app::{DemoFault, FaultSwitch},
            load::DemoLoad,
            screen::Screen,
        },
        print_error, read_environment, run,
    },
    clock,
    settings::Settings,
    telemetry::access_log::AccessLogWriter,
};

/// The policy that is used where there is no policy directory.
const DEFAULT_POLICY: &str = include_str!("../../policies/default.yaml");

/// When the fault begins, and when it ends.
const FAULT_WINDOW: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(14));

/// How often the screen is drawn.
const FRAME_INTERVAL: Duration = Duration::from_millis(250);

/// How long, and under what.
#[derive(Debug, Args)]
pub(super) struct DemoCommand {
    /// Ends by itself after so many seconds.
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Makes no load, and no fault by itself.
    #[arg(long)]
    no_load: bool,
    /// The policy directory. Where there is none, the shipped policy is used from a temporary one.
    #[arg(
        long,
        env = "OUTRIGGER_POLICIES",
        default_value = "policies",
        value_name = "DIR"
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
                    "outrigger: no place for the demo's policies: {error}"
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
        screen.print_introduction(
            &app_address,
            &inbound,
            &outbound,
            &sidecar.admin_address(),
            &policies,
        );
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
                screen.print_announcement("a fault begins: the app answers every request with 503");
            }
            if has_begun && !has_ended && elapsed >= FAULT_WINDOW.1 {
                has_ended = true;
                faults.set(DemoFault::None);
                screen.print_announcement("the fault ends; the breaker will find out by itself");
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
                // If the signal cannot be waited for, there is no other way to be asked to end.
                _ = tokio::signal::ctrl_c() => return,
            }
        }
    }
}

/// The policy directory, or a temporary one with the shipped policy.
fn prepare_policies(wanted: &Path) -> std::io::Result<PathBuf> {
    if wanted.exists() {
        return Ok(wanted.to_owned());
    }
    let directory = std::env::temp_dir().join(format!("outrigger-demo-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    std::fs::write(directory.join("default.yaml"), DEFAULT_POLICY)?;
    Ok(directory)
}

/// The usual port if it is free, else any.
fn preferred_or_any_port(port: u16) -> SocketAddr {
    let preferred = SocketAddr::from(([127, 0, 0, 1], port));
    if std::net::TcpListener::bind(preferred).is_ok() {
        preferred
    } else {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }
}
