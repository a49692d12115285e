//! The background: everything that happens without a request, and all timers.
//!
//! All tasks are started here, each has a name, and all end with the control thread's runtime.

mod certificates;
mod dial;
mod discovery;
mod drain;
mod file_watch;
pub mod handover;
mod health;
mod http1_call;
mod http2_call;
mod maintenance;
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
    handover::{Handover, Predecessor},
    health::app_health::AppProbeCache,
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

/// What the background is to look after.
#[derive(Debug)]
pub struct ControlLoop {
    /// What all parts share.
    pub state: Arc<State>,
    /// Reads policies and puts them in force.
    pub reloader: Reloader,
    /// The signals of the process that are heeded.
    pub signals: ProcessSignals,
    /// What the tasks need besides.
    pub tasks: BackgroundTasks,
}

/// What the tasks of the background need.
#[derive(Debug)]
pub struct BackgroundTasks {
    /// How often the policy directory is looked at, besides the system's notices.
    pub poll_interval: Duration,
    /// A name server to ask instead of the system's.
    pub name_server: Option<SocketAddr>,
    /// The cgroup to watch instead of the process's own.
    pub cgroup: Option<PathBuf>,
    /// What a successor is given, if one may come.
    pub handover: Option<Handover>,
    /// Whether a supervisor holds the sockets: then they stay when this process goes, and whoever comes next takes what waits in them.
    pub is_supervised: bool,
    /// The sockets that somebody else has bound.
    pub inherited: Arc<InheritedSockets>,
    /// Who serves at them until this instance can.
    pub predecessor: Option<Predecessor>,
}

impl ControlLoop {
    /// Runs until the instance has drained.
    pub async fn run(self, mut commands: mpsc::Receiver<Command>) -> ExitReason {
        let Self {
            state,
            mut reloader,
            mut signals,
            tasks: background,
        } = self;
        let (generation_sender, generations) =
            channel::channel(state.active_policy.load().generation);
        let generation_sender = Arc::new(generation_sender);
        let (changed, mut changes) = mpsc::channel(1);
        let (successor_sender, mut successors) = mpsc::channel(1);
        let is_supervised = background.is_supervised;
        let mut tasks = background.start(
            &state,
            &reloader,
            (generation_sender.clone(), generations),
            changed,
            successor_sender,
        );
        let mut app_probes = AppProbeCache::new(state.clone());
        let mut drain_controller =
            drain::DrainController::new(state.clone(), reloader.listeners().clone());
        let mut has_end_signal = false;
        loop {
            // Who is leaving follows no other policies: its sockets are its successor's.
            let may_reload = !state.drain.is_draining();
            tokio::select! {
                Some(command) = commands.recv() => match command {
                    Command::Reload(reply) if may_reload => {
                        // Whoever asked may have left.
                        _ = reply.send(reloader.reload());
                    }
                    // Whoever waits for an answer is told by its end.
                    Command::Reload(_) => {}
                    Command::Drain { requested_by: asked_by, after_drain: going, started: begun } => {
                        drain_controller.begin(asked_by, going);
                        // Whoever asked may have left.
                        _ = begun.send(());
                    }
                    Command::ProbeApp { backend, path, reply } => app_probes.send_probe(backend, path, reply),
                },
                () = app_probes.publish_next_result() => {}
                Some(ended) = tasks.join_next() => return report_ended_task(&ended),
                Some(()) = changes.recv(), if may_reload => reloader.reload_if_changed(),
                signal = signals.next() => match signal {
                    // The faults, if any, have been told as an event.
                    signals::ProcessSignal::Reload if may_reload => drop(reloader.reload()),
                    signals::ProcessSignal::Reload => {}
                    signals::ProcessSignal::Terminate(_) if has_end_signal => return ExitReason::Immediate,
                    signals::ProcessSignal::Terminate(name) => {
                        has_end_signal = true;
                        if is_supervised && !drain_controller.has_begun() { drain_controller.hand_over(name) } else { drain_controller.begin(name, AfterDrain::Terminate) }
                    }
                },
                Some(successor) = successors.recv() => {
                    drain_controller.hand_over("its successor");
                    successor.release().await;
                }
                end = drain_controller.run_to_completion() => return end,
            }
            let generation = state.active_policy.load().generation;
            generation_sender
                .send_if_modified(|known| std::mem::replace(known, generation) != generation);
        }
    }
}

impl BackgroundTasks {
    /// Starts everything that runs by itself.
    fn start(
        self,
        state: &Arc<State>,
        reloader: &Reloader,
        (generation_sender, generations): (Arc<channel::Sender<u64>>, channel::Receiver<u64>),
        changed: mpsc::Sender<()>,
        successors: mpsc::Sender<handover::Successor>,
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
        let mut tasks = JoinSet::new();
        tasks.spawn(file_watch::watch_path(
            reloader.path().to_owned(),
            poll_interval,
            changed,
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
                generation_sender,
            },
            generations,
        ));
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
                    handover::wait_for_successor(handover, state, listeners, successors).await
                }
                Err(reason) => tracing::error!("{reason}"),
            }
        });
        tasks
    }
}

/// Waits until the policies in force have changed; not if a task of `tasks` panicked, or nobody can change them any more.
async fn wait_for_policy_change(
    generations: &mut channel::Receiver<u64>,
    tasks: &mut JoinSet<()>,
) -> bool {
    loop {
        tokio::select! {
            changed = generations.changed() => return changed.is_ok(),
            Some(ended) = tasks.join_next() => if ended.is_err_and(|error| error.is_panic()) {
                return false;
            }
        }
    }
}

/// A background task that ends has failed: it would go on for ever. Without it the instance would only seem to work.
fn report_ended_task(ended: &Result<(), tokio::task::JoinError>) -> ExitReason {
    tracing::error!("a background task has ended, and the instance with it: {ended:?}");
    ExitReason::Failed
}
