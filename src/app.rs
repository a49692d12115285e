//! The composition root: creates all parts of an instance, connects them, and starts their
//! threads.
//!
//! It decides the order of startup. It does not know how any part works.
//!
//! | thread | purpose |
//! | --- | --- |
//! | `worker-N` | the data plane; each worker has one single-threaded runtime |
//! | `control` | reload, health checks, discovery, recovery, signals and drain |
//! | `admin` | probes, metrics and the API; it responds while the workers are busy |
//! | `access-log` | writes the access log |
//!
//! With global rate limits, the connection to their engine runs on one more thread, from the
//! blocking pool of the control runtime.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    runtime,
    sync::{mpsc, oneshot},
};

use crate::{
    admin, clock,
    control::{
        BackgroundTasks, ControlLoop, InitialLoadError, ProcessSignals, Reloader,
        handover::{self, Handover, Predecessor},
        memory_limit,
    },
    policy::diagnostic::Diagnostics,
    proxy::{accept::listeners::Listeners, upstream::worker::WorkerHandle},
    settings::Settings,
    state::{
        State,
        instance::{
            command::{AfterDrain, Command},
            lifecycle::ExitReason,
            listener_sockets::{InheritedShare, InheritedSockets, ListenerSet as _},
            memory::MemoryBudget,
        },
    },
    telemetry::{Telemetry, access_log::AccessLogWriter, event::Event},
};

/// A running instance. Dropping it terminates the instance immediately, without a drain.
#[derive(Debug)]
pub struct App {
    state: Arc<State>,
    listeners: Arc<Listeners>,
    admin_address: SocketAddr,
    control_thread: Option<JoinHandle<ExitReason>>,
    stop_control: Option<oneshot::Sender<()>>,
    admin_server: Option<AdminServer>,
}

/// Reason why an instance cannot start.
#[derive(Debug)]
pub enum StartError {
    /// The policies are invalid, and no stored set can be used.
    Policy(Diagnostics),
    /// A socket cannot be bound or taken over, or a certificate file cannot be used.
    Bind(String),
    /// The system cannot provide a thread, a descriptor, a signal registration or an event
    /// queue.
    System(io::Error),
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Policy(faults) => write!(f, "the policies are invalid: {}", faults.headline()),
            Self::Bind(reason) => f.write_str(reason),
            Self::System(error) => write!(f, "the system reports an error: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

impl From<InitialLoadError> for StartError {
    fn from(error: InitialLoadError) -> Self {
        match error {
            InitialLoadError::Policy(faults) => Self::Policy(faults),
            InitialLoadError::Bind(reason) => Self::Bind(reason),
        }
    }
}

impl App {
    /// Starts an instance, and returns when its listeners are bound and its first policies are
    /// active.
    ///
    /// # Errors
    /// If the policies are invalid, an address cannot be bound, or the system lacks resources.
    pub fn start(settings: Settings, access_log: AccessLogWriter) -> Result<Self, StartError> {
        let runtime = build_runtime()?;
        let signals = register_signals(&settings, &runtime)?;
        let telemetry = Arc::new(Telemetry::new(access_log, clock::wall_time));
        let (state, commands) = State::new(
            telemetry.clone(),
            memory_budget(&settings, telemetry.clone()),
            settings.zone.as_deref().map(Arc::from),
            clock::now(),
        );
        let workers = WorkerHandle::start_all(settings.worker_threads.get(), &state)?;
        let sockets = ExistingSockets::collect(&settings)?;
        let inherited = sockets.inherited.clone();
        let listeners = Arc::new(Listeners::new(workers, state.clone(), inherited));
        let (admin_socket, admin) = start_admin(&settings, &sockets, &state)?;
        let admin_address = admin_socket.local_addr()?;
        telemetry.emit(Event::Started {
            version: env!("CARGO_PKG_VERSION"),
            admin: admin_address.to_string(),
        });
        let mut reloader = Reloader::new(
            state.clone(),
            listeners.clone(),
            settings.policy_path,
            settings.state_dir,
            settings.environment,
        );
        reloader.load_initial()?;
        let inheritance = sockets.close_unclaimed(&listeners)?;
        if let Some(age) = sockets.predecessor_age() {
            state.lifecycle.inherit_age(age);
        }
        let handover = settings
            .handover_path
            .map(|path| Handover::new(path, settings.admin_address, admin_socket));
        let tasks = BackgroundTasks {
            poll_interval: settings.poll_interval,
            name_server: settings.name_server,
            cgroup: settings.cgroup_path,
            handover,
            is_supervised: sockets.is_supervised && inheritance == InheritedShare::All,
            inherited: sockets.inherited,
            predecessor: sockets.predecessor,
        };
        let control = ControlLoop {
            state: state.clone(),
            reloader,
            signals,
            tasks,
        };
        let (control_thread, stop_control) = spawn_control(runtime, control, commands)?;
        Ok(Self {
            state,
            listeners,
            admin_address,
            control_thread: Some(control_thread),
            stop_control: Some(stop_control),
            admin_server: Some(admin),
        })
    }

    /// Returns the address on which the admin server listens, with the actual port.
    #[must_use]
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Returns the bound address of the listener `name`, with the actual port; `None` if no
    /// such listener is active.
    #[must_use]
    pub fn listener_address(&self, name: &str) -> Option<SocketAddr> {
        self.listeners.address(name)
    }

    /// Returns the state that all parts of the instance share.
    #[must_use]
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Starts a drain and returns at once. The instance terminates after the drain;
    /// [`Self::wait`] reports the end.
    pub fn drain(&self) {
        // The send fails in two cases. If the channel is closed, the instance has terminated.
        // If it is full of other commands, no drain starts.
        _ = self.state.commands.try_send(Command::Drain {
            requested_by: "the embedding program",
            after_drain: AfterDrain::Terminate,
            started: oneshot::channel().0,
        });
    }

    /// Waits until the instance has terminated, and returns the reason.
    #[must_use]
    pub fn wait(mut self) -> ExitReason {
        // The panic hook has already reported a panic of the control thread.
        self.control_thread
            .take()
            .and_then(|control| control.join().ok())
            .unwrap_or(ExitReason::Failed)
    }
}

impl Drop for App {
    fn drop(&mut self) {
        // A failed send means that the thread has already ended.
        if let Some(end) = self.stop_control.take() {
            _ = end.send(());
        }
        if let Some(control) = self.control_thread.take() {
            _ = control.join();
        }
        if let Some((stop, admin)) = self.admin_server.take() {
            _ = stop.send(());
            _ = admin.join();
        }
    }
}

type AdminServer = (oneshot::Sender<()>, JoinHandle<()>);

/// Sockets that are already bound, and the process that accepts on them.
struct ExistingSockets {
    inherited: Arc<InheritedSockets>,
    predecessor: Option<Predecessor>,
    is_supervised: bool,
}

impl ExistingSockets {
    /// Requests the sockets of the running process, and takes those of a supervisor.
    fn collect(settings: &Settings) -> Result<Self, StartError> {
        let to_start_error = |error: io::Error| {
            StartError::Bind(format!(
                "the sockets of the running process cannot be taken over: {error}"
            ))
        };
        let handed_over = settings
            .handover_path
            .as_deref()
            .map(handover::request_sockets)
            .transpose()
            .map_err(to_start_error)?;
        let (predecessor, mut sockets) = handed_over
            .flatten()
            .map_or_else(Default::default, |(predecessor, sockets)| {
                (Some(predecessor), sockets)
            });
        let supervised = if settings.uses_supervised_sockets {
            handover::take_supervised_sockets()?
        } else {
            Vec::new()
        };
        let is_supervised = !supervised.is_empty();
        sockets.extend(supervised);
        Ok(Self {
            inherited: Arc::new(InheritedSockets::new(sockets)),
            predecessor,
            is_supervised,
        })
    }

    /// Closes the sockets that no listener uses, once the first policies are active. Returns
    /// how many of the listeners use one of the sockets.
    fn close_unclaimed(&self, listeners: &Listeners) -> Result<InheritedShare, StartError> {
        for address in self.inherited.close_unclaimed() {
            tracing::warn!(
                "the socket at {address} was handed to this process, and no listener uses it"
            );
        }
        let inheritance = listeners.inherited_share();
        if self.predecessor.is_some() && inheritance == InheritedShare::None {
            let reason = "the running process has none of the policies' listeners; name another \
                          path with --handover, or stop it";
            return Err(StartError::Bind(reason.to_owned()));
        }
        Ok(inheritance)
    }

    /// Returns the time for which a predecessor process has been ready.
    fn predecessor_age(&self) -> Option<Duration> {
        self.predecessor.as_ref()?.ready_duration
    }
}

/// Creates the memory budget, and logs it.
fn memory_budget(settings: &Settings, telemetry: Arc<Telemetry>) -> MemoryBudget {
    let budget_bytes = settings
        .memory_budget
        .unwrap_or_else(memory_limit::default_budget);
    tracing::info!("the memory budget is {} MiB", budget_bytes >> 20);
    MemoryBudget::new(budget_bytes, settings.worker_threads.get(), telemetry)
}

/// Registers the process signals, unless the embedding program handles them.
fn register_signals(settings: &Settings, runtime: &runtime::Runtime) -> io::Result<ProcessSignals> {
    if !settings.handles_signals {
        return Ok(ProcessSignals::default());
    }
    let _inside = runtime.enter();
    ProcessSignals::register()
}

/// Runs the control loop on a thread of its own, until it ends or the returned sender is used.
fn spawn_control(
    runtime: runtime::Runtime,
    control: ControlLoop,
    commands: mpsc::Receiver<Command>,
) -> io::Result<(JoinHandle<ExitReason>, oneshot::Sender<()>)> {
    let (stop, stopped) = oneshot::channel();
    let thread = thread::Builder::new()
        .name("control".into())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    end = control.run(commands) => end,
                    _ = stopped => ExitReason::Immediate,
                }
            })
        })?;
    Ok((thread, stop))
}

fn start_admin(
    settings: &Settings,
    sockets: &ExistingSockets,
    state: &Arc<State>,
) -> Result<(TcpListener, AdminServer), StartError> {
    let to_start_error = |error: io::Error| {
        StartError::Bind(format!(
            "the admin server cannot be bound to {}: {error}",
            settings.admin_address
        ))
    };
    let (socket, is_inherited) =
        handover::bind_admin_socket(&sockets.inherited, settings.admin_address)
            .map_err(to_start_error)?;
    let gate = (is_inherited && sockets.predecessor.is_some())
        .then(|| sockets.inherited.subscribe_accept_scope());
    let retained_socket = socket.try_clone()?;
    let runtime = build_runtime()?;
    let (stop, stopped) = oneshot::channel();
    let server = admin::serve(socket, state.clone(), settings.admin_token.clone(), gate);
    let thread = thread::Builder::new().name("admin".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                ended = server => {
                    if let Err(error) = ended {
                        tracing::error!("the admin server ended: {error}");
                    }
                }
                _ = stopped => {}
            }
        });
    })?;
    Ok((retained_socket, (stop, thread)))
}

fn build_runtime() -> io::Result<runtime::Runtime> {
    runtime::Builder::new_current_thread().enable_all().build()
}
