//! The control plane of one instance: the background tasks and the timers that run without a
//! request.
//!
//! It decides when policies are reloaded, when an instance drains, and when the process ends.
//! It exists so that the request path never waits for files, name servers or health checks. It
//! does not know HTTP sessions or routing; it reaches the data plane only through [`State`] and
//! the `ListenerSet` trait.
//!
//! [`ControlLoop::run`] owns the main loop. [`BackgroundTasks`] starts every long-lived task.
//! All tasks end with the runtime of the control thread.

mod certificates;
mod discovery;
mod drain;
mod file_watch;
pub mod handover;
mod health;
mod http1_call;
mod http2_call;
mod maintenance;
pub mod memory_limit;
mod policy_change;
mod recovery;
mod reload;
#[cfg(any(feature = "redis", feature = "rls"))]
mod remote_limits;
mod resource_monitor;
mod signals;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch as channel},
    task::JoinSet,
};

use crate::control::{
    discovery::DiscoveryContext,
    drain::DrainController,
    handover::{Handover, Predecessor},
    health::app_health::AppProbeCache,
    signals::ProcessSignal,
};
pub use crate::control::{
    reload::{InitialLoadError, Reloader},
    signals::ProcessSignals,
};
use crate::state::{
    State,
    instance::{
        command::{AfterDrain, Command},
        lifecycle::ExitReason,
        listener_sockets::InheritedSockets,
    },
};

/// The main loop of the control thread, with everything that it owns.
#[derive(Debug)]
pub struct ControlLoop {
    /// State shared with the data plane and the admin server.
    pub state: Arc<State>,
    /// Loads policies from disk and activates them.
    pub reloader: Reloader,
    /// Process signals that trigger a reload or a drain.
    pub signals: ProcessSignals,
    /// Inputs of the background tasks that are started with the loop.
    pub tasks: BackgroundTasks,
}

/// Inputs of the background tasks, taken from the settings and the startup of the process.
#[derive(Debug)]
pub struct BackgroundTasks {
    /// Time between two polls of the policy directory, endpoint files and certificate files.
    /// File system events trigger policy and endpoint reads earlier.
    pub poll_interval: Duration,
    /// Name server for DNS discovery; `None` uses the system configuration.
    pub name_server: Option<SocketAddr>,
    /// cgroup v2 directory whose resources are monitored; `None` uses the cgroup of this
    /// process.
    pub cgroup: Option<PathBuf>,
    /// Socket path and admin socket for a successor process; `None` disables the handover.
    pub handover: Option<Handover>,
    /// Whether a supervisor holds all listening sockets open across restarts. Connections that
    /// arrive after this process stops accepting then wait for the next process.
    pub is_supervised: bool,
    /// Listening sockets that another process bound.
    pub inherited: Arc<InheritedSockets>,
    /// Process that accepts on the inherited sockets until this instance is ready.
    pub predecessor: Option<Predecessor>,
}

impl ControlLoop {
    /// Runs the main loop until the instance has drained, a second termination signal arrives,
    /// or a background task fails.
    pub async fn run(self, mut commands: mpsc::Receiver<Command>) -> ExitReason {
        let Self {
            state,
            reloader,
            mut signals,
            tasks: background,
        } = self;
        let generation = state.active_policy.load().generation;
        let generation_sender = Arc::new(channel::Sender::new(generation));
        let (policy_changed, mut policy_changes) = mpsc::channel(1);
        let (successor_ready, mut successors) = mpsc::channel(1);
        let is_supervised = background.is_supervised;
        let mut tasks = background.start(
            &state,
            &reloader,
            &generation_sender,
            LoopNotifications {
                policy_changed,
                successor_ready,
            },
        );
        let mut controls = InstanceControls {
            app_probes: AppProbeCache::new(state.clone()),
            drain_controller: DrainController::new(state.clone(), reloader.listeners().clone()),
            reloader,
            state: state.clone(),
            is_supervised,
            has_end_signal: false,
        };
        loop {
            tokio::select! {
                Some(command) = commands.recv() => controls.execute(command),
                () = controls.app_probes.publish_next_result() => {}
                Some(ended) = tasks.join_next() => return report_ended_task(&ended),
                Some(()) = policy_changes.recv(), if controls.may_reload() => {
                    controls.reloader.reload_if_changed();
                }
                signal = signals.next() => {
                    if let Some(end) = controls.apply_signal(signal) {
                        return end;
                    }
                }
                Some(successor) = successors.recv() => {
                    controls.drain_controller.hand_over("its successor");
                    successor.release().await;
                }
                end = controls.drain_controller.run_to_completion() => return end,
            }
            let generation = state.active_policy.load().generation;
            generation_sender
                .send_if_modified(|known| std::mem::replace(known, generation) != generation);
        }
    }
}

/// Parts of the instance on which commands and signals act.
#[derive(Debug)]
struct InstanceControls {
    state: Arc<State>,
    reloader: Reloader,
    app_probes: AppProbeCache,
    drain_controller: DrainController,
    /// Whether a supervisor holds all listening sockets open across restarts.
    is_supervised: bool,
    /// Whether a termination signal has arrived. A second one ends the process at once.
    has_end_signal: bool,
}

impl InstanceControls {
    /// Returns whether policies may be replaced. A draining instance ignores policy changes: its
    /// sockets may already belong to a successor.
    fn may_reload(&self) -> bool {
        !self.state.drain.is_draining()
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::Reload(reply) if self.may_reload() => {
                // The requester may have disconnected; its receiver is then closed.
                _ = reply.send(self.reloader.reload());
            }
            // Dropping the reply channel notifies the requester that no reload took place.
            Command::Reload(_) => {}
            Command::Drain {
                requested_by,
                after_drain,
                started,
            } => {
                self.drain_controller.begin(requested_by, after_drain);
                // The requester may have disconnected; its receiver is then closed.
                _ = started.send(());
            }
            Command::ProbeApp {
                backend,
                path,
                reply,
            } => self.app_probes.send_probe(backend, path, reply),
        }
    }

    /// Acts on a process signal. Returns an exit reason if the process must end at once.
    fn apply_signal(&mut self, signal: ProcessSignal) -> Option<ExitReason> {
        match signal {
            // The reloader has already reported a failure as an event.
            ProcessSignal::Reload if self.may_reload() => drop(self.reloader.reload()),
            ProcessSignal::Reload => {}
            ProcessSignal::Terminate(_) if self.has_end_signal => {
                return Some(ExitReason::Immediate);
            }
            ProcessSignal::Terminate(name) => {
                self.has_end_signal = true;
                if self.is_supervised && !self.drain_controller.has_begun() {
                    self.drain_controller.hand_over(name);
                } else {
                    self.drain_controller.begin(name, AfterDrain::Terminate);
                }
            }
        }
        None
    }
}

/// Channels on which background tasks notify the main loop.
#[derive(Debug)]
struct LoopNotifications {
    /// The files of the policy directory may have changed.
    policy_changed: mpsc::Sender<()>,
    /// A successor process is ready, and waits until this process stops accepting.
    successor_ready: mpsc::Sender<handover::Successor>,
}

impl BackgroundTasks {
    /// Spawns all background tasks. The returned set yields a task as soon as it ends.
    fn start(
        self,
        state: &Arc<State>,
        reloader: &Reloader,
        generation_sender: &Arc<channel::Sender<u64>>,
        notifications: LoopNotifications,
    ) -> JoinSet<()> {
        let Self {
            poll_interval,
            name_server,
            cgroup,
            handover,
            inherited,
            predecessor,
            ..
        } = self;
        let LoopNotifications {
            policy_changed,
            successor_ready,
        } = notifications;
        let generations = generation_sender.subscribe();
        let mut tasks = JoinSet::new();
        tasks.spawn(file_watch::watch_path(
            reloader.path().to_owned(),
            poll_interval,
            policy_changed,
        ));
        tasks.spawn(health::active_checks::run_active_checks(
            state.clone(),
            generations.clone(),
        ));
        #[cfg(any(feature = "redis", feature = "rls"))]
        tasks.spawn(remote_limits::start_when_configured(
            state.clone(),
            generations.clone(),
        ));
        tasks.spawn(discovery::run_discovery(
            DiscoveryContext {
                state: state.clone(),
                pending_backends: Arc::default(),
                name_server,
                poll_interval,
                generation_sender: generation_sender.clone(),
            },
            generations,
        ));
        tasks.spawn(maintenance::return_memory(state.clone()));
        tasks.spawn(maintenance::run_maintenance(state.clone()));
        tasks.spawn(certificates::watch_certificates(
            state.clone(),
            poll_interval,
        ));
        tasks.spawn(maintenance::watch_outliers(state.clone()));
        tasks.spawn(resource_monitor::monitor_resources(state.clone(), cgroup));
        tasks.spawn(recovery::run_recoveries(state.clone()));
        let (state, listeners) = (state.clone(), reloader.listeners().clone());
        tasks.spawn(async move {
            match handover::take_over(&state, listeners.as_ref(), &inherited, predecessor).await {
                Ok(()) => {
                    handover::wait_for_successor(handover, state, listeners, successor_ready).await
                }
                Err(reason) => tracing::error!("{reason}"),
            }
        });
        tasks
    }
}

/// Logs the end of a background task and returns the exit reason of the process.
///
/// Background tasks never end on their own, so an ended task has failed. Without the task the
/// instance would only appear to work.
fn report_ended_task(ended: &Result<(), tokio::task::JoinError>) -> ExitReason {
    tracing::error!("a background task has ended, and the instance with it: {ended:?}");
    ExitReason::Failed
}
