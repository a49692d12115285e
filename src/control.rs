//! The background: everything that happens without a request, and all timers.
//!
//! All tasks are started here, each has a name, and all end with the control thread's runtime.

mod app_health;
mod certificates;
mod dial;
mod discovery;
mod drain;
mod gates;
mod grpc_check;
pub mod handover;
mod http2_call;
mod http_call;
mod probing;
mod protection;
mod recovery;
mod reload;
#[cfg(any(feature = "redis", feature = "rls"))]
mod remote_limits;
mod signals;
mod upkeep;
mod watch;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch as channel},
    task::JoinSet,
};

use self::{
    app_health::AppProbes,
    discovery::Finder,
    handover::{Handover, Predecessor},
};
pub use self::{
    reload::{Reloader, StartFault},
    signals::Signals,
};
use crate::state::{
    State,
    command::{Command, Going},
    lifecycle::End,
    listening::Inherited,
};

/// What the background is to look after.
#[derive(Debug)]
pub struct Control {
    /// What all parts share.
    pub state: Arc<State>,
    /// Reads policies and puts them in force.
    pub reloader: Reloader,
    /// The signals of the process that are heeded.
    pub signals: Signals,
    /// What the tasks need besides.
    pub tasks: Tasks,
}

/// What the tasks of the background need.
#[derive(Debug)]
pub struct Tasks {
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
    pub inherited: Arc<Inherited>,
    /// Who serves at them until this instance can.
    pub predecessor: Option<Predecessor>,
}

impl Control {
    /// Runs until the instance has drained.
    pub async fn run(self, mut wishes: mpsc::Receiver<Command>) -> End {
        let Self {
            state,
            mut reloader,
            mut signals,
            tasks: parts,
        } = self;
        let (applied, generations) = channel::channel(state.live.load().generation);
        let applied = Arc::new(applied);
        let (changed, mut changes) = mpsc::channel(1);
        let (sender, mut successors) = mpsc::channel(1);
        let is_supervised = parts.is_supervised;
        let mut tasks = parts.start(
            &state,
            &reloader,
            (applied.clone(), generations),
            changed,
            sender,
        );
        let mut probes = AppProbes::new(state.clone());
        let mut leaving = drain::Leaving::new(state.clone(), reloader.listeners().clone());
        let mut was_told = false;
        loop {
            // Who is leaving follows no other policies: its sockets are its successor's.
            let may_reload = !state.departure.is_draining();
            tokio::select! {
                Some(command) = wishes.recv() => match command {
                    Command::Reload(reply) if may_reload => {
                        // Whoever asked may have left.
                        _ = reply.send(reloader.reload());
                    }
                    // Whoever waits for an answer is told by its end.
                    Command::Reload(_) => {}
                    Command::Drain { asked_by, going, begun } => {
                        leaving.begin(asked_by, going);
                        // Whoever asked may have left.
                        _ = begun.send(());
                    }
                    Command::AskApp { backend, path, reply } => probes.ask(backend, path, reply),
                },
                () = probes.answer() => {}
                Some(ended) = tasks.join_next() => return failed(&ended),
                Some(()) = changes.recv(), if may_reload => reloader.reload_if_changed(),
                signal = signals.next() => match signal {
                    // The faults, if any, have been told as an event.
                    signals::Signal::Reload if may_reload => drop(reloader.reload()),
                    signals::Signal::Reload => {}
                    signals::Signal::End(_) if was_told => return End::AtOnce,
                    signals::Signal::End(name) => {
                        was_told = true;
                        if is_supervised && !leaving.has_begun() { leaving.relieve(name) } else { leaving.begin(name, Going::Goes) }
                    }
                },
                Some(successor) = successors.recv() => {
                    leaving.relieve("its successor");
                    successor.let_go().await;
                }
                end = leaving.gone() => return end,
            }
            let generation = state.live.load().generation;
            applied.send_if_modified(|known| std::mem::replace(known, generation) != generation);
        }
    }
}

impl Tasks {
    /// Starts everything that runs by itself.
    fn start(
        self,
        state: &Arc<State>,
        reloader: &Reloader,
        (applied, generations): (Arc<channel::Sender<u64>>, channel::Receiver<u64>),
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
        tasks.spawn(watch::watch(
            reloader.path().to_owned(),
            poll_interval,
            changed,
        ));
        tasks.spawn(probing::probe(state.clone(), generations.clone()));
        #[cfg(any(feature = "redis", feature = "rls"))]
        tasks.spawn(remote_limits::keep(state.clone(), generations.clone()));
        tasks.spawn(discovery::discover(
            Finder {
                state: state.clone(),
                awaited: Arc::default(),
                name_server,
                poll_interval,
                applied,
            },
            generations,
        ));
        tasks.spawn(upkeep::upkeep(state.clone()));
        tasks.spawn(certificates::follow(state.clone(), poll_interval));
        tasks.spawn(upkeep::watch_outliers(state.clone()));
        tasks.spawn(protection::watch(state.clone(), cgroup));
        tasks.spawn(recovery::recover(state.clone()));
        let (state, listeners) = (state.clone(), reloader.listeners().clone());
        tasks.spawn(async move {
            match handover::take_over(&state, listeners.as_ref(), &inherited, predecessor).await {
                Ok(()) => handover::wait(handover, state, listeners, successors).await,
                Err(why) => tracing::error!("{why}"),
            }
        });
        tasks
    }
}

/// Waits until the policies in force have changed; not if a task of `tasks` panicked, or nobody can change them any more.
async fn changed(generations: &mut channel::Receiver<u64>, tasks: &mut JoinSet<()>) -> bool {
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
fn failed(ended: &Result<(), tokio::task::JoinError>) -> End {
    tracing::error!("a background task has ended, and the instance with it: {ended:?}");
    End::Failed
}
