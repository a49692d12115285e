//! The composition root: makes all parts, joins them, and starts their threads.
//!
//! | thread | does |
//! | --- | --- |
//! | `worker-N` | the data plane, one single-threaded runtime each |
//! | `control` | reload, probing, recovery, signals, drain |
//! | `admin` | probes, metrics and the API; answers while the workers are busy |
//! | `access-log` | writes the access log |

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread::{self, JoinHandle},
};

use tokio::{runtime, sync::oneshot};

use crate::{
    admin, clock,
    control::{
        Control, Reloader, Signals, StartFault, Tasks,
        handover::{self, Handover, Predecessor},
    },
    policy::diagnostic::Diagnostics,
    proxy::{listeners::Listeners, worker::WorkerHandle},
    settings::Settings,
    state::{
        State,
        command::{Command, Going},
        lifecycle::End,
        listening::{BoundSocket, Inheritance, Inherited, ListenerSet as _},
    },
    telemetry::{Telemetry, access_log::AccessLog, event::Event},
};

/// A running instance. Dropped, it ends at once.
#[derive(Debug)]
pub struct App {
    state: Arc<State>,
    listeners: Arc<Listeners>,
    admin_address: SocketAddr,
    control: Option<JoinHandle<End>>,
    end: Option<oneshot::Sender<()>>,
    admin: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

/// Why an instance cannot start.
#[derive(Debug)]
pub enum StartError {
    /// The policies are faulty.
    Policy(Diagnostics),
    /// An address cannot be bound.
    Bind(String),
    /// The system gives no thread or no event queue.
    System(io::Error),
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Policy(faults) => write!(f, "the policies are refused: {}", faults.headline()),
            Self::Bind(why) => f.write_str(why),
            Self::System(error) => write!(f, "the system refuses: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

impl App {
    /// Starts an instance.
    ///
    /// # Errors
    /// If the policies are faulty, an address cannot be bound, or the system refuses.
    pub fn start(settings: Settings, access_log: AccessLog) -> Result<Self, StartError> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let signals = if settings.heeds_signals {
            let _inside = runtime.enter();
            Signals::heed()?
        } else {
            Signals::default()
        };
        let telemetry = Arc::new(Telemetry::new(access_log, clock::wall));
        let (state, wishes) = State::new(
            telemetry.clone(),
            settings.zone.as_deref().map(Arc::from),
            clock::now(),
        );
        let workers = WorkerHandle::start_all(settings.workers.get(), &state)?;
        let Succession {
            inherited,
            predecessor,
            is_supervised,
        } = inherit(&settings)?;
        let listeners = Arc::new(Listeners::new(workers, state.clone(), inherited.clone()));

        let (admin_socket, admin) =
            start_admin(&settings, &inherited, predecessor.is_some(), &state)?;
        let admin_address = admin_socket.local_addr()?;
        telemetry.emit(Event::Started {
            version: env!("CARGO_PKG_VERSION"),
            admin: admin_address.to_string(),
        });
        let mut reloader = Reloader::new(
            state.clone(),
            listeners.clone(),
            settings.policies,
            settings.state_dir,
            settings.environment,
        );
        reloader.start().map_err(|fault| match fault {
            StartFault::Policy(faults) => StartError::Policy(faults),
            StartFault::Bind(why) => StartError::Bind(why),
        })?;
        for address in inherited.close_rest() {
            tracing::warn!(
                "the socket at {address} was handed to this process, and no listener wants it"
            );
        }
        let inheritance = listeners.inheritance();
        if predecessor.is_some() && inheritance == Inheritance::None {
            return Err(StartError::Bind("the running process has none of the policies' listeners; name another path with --handover, or stop it".to_owned()));
        }
        if let Some(age) = predecessor
            .as_ref()
            .and_then(|predecessor| predecessor.ready_for)
        {
            state.lifecycle.continues(age);
        }
        let handover = settings.handover.map(|path| Handover {
            path,
            admin: BoundSocket {
                owner: handover::ADMIN.to_owned(),
                asked: settings.admin,
                socket: admin_socket,
            },
        });
        let tasks = Tasks {
            poll_interval: settings.poll_interval,
            name_server: settings.name_server,
            cgroup: settings.cgroup,
            handover,
            is_supervised: is_supervised && inheritance == Inheritance::All,
            inherited,
            predecessor,
        };
        let control = Control {
            state: state.clone(),
            reloader,
            signals,
            tasks,
        };
        let (end, ended) = oneshot::channel();
        let control = thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                let run = async {
                    tokio::select! {
                        end = control.run(wishes) => end,
                        _ = ended => End::AtOnce,
                    }
                };
                runtime.block_on(run)
            })?;
        Ok(Self {
            state,
            listeners,
            admin_address,
            control: Some(control),
            end: Some(end),
            admin: Some(admin),
        })
    }

    /// Where the admin server listens.
    #[must_use]
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Where a listener takes requests.
    #[must_use]
    pub fn listener_address(&self, name: &str) -> Option<SocketAddr> {
        self.listeners.address(name)
    }

    /// What all parts share.
    #[must_use]
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Asks the instance to leave.
    pub fn drain(&self) {
        // If so many wishes wait, or nobody hears them any more, it is leaving already.
        _ = self.state.commands.try_send(Command::Drain {
            asked_by: "the embedding program",
            going: Going::Goes,
            begun: oneshot::channel().0,
        });
    }

    /// Waits until the instance has left.
    #[must_use]
    pub fn wait(mut self) -> End {
        // A control thread that panicked has said so.
        self.control
            .take()
            .and_then(|control| control.join().ok())
            .unwrap_or(End::Failed)
    }
}

impl Drop for App {
    fn drop(&mut self) {
        // If the other end is gone, its thread is.
        if let Some(end) = self.end.take() {
            _ = end.send(());
        }
        if let Some(control) = self.control.take() {
            _ = control.join();
        }
        if let Some((stop, admin)) = self.admin.take() {
            _ = stop.send(());
            _ = admin.join();
        }
    }
}

type Running = (oneshot::Sender<()>, JoinHandle<()>);

/// Sockets that are bound already, and by whom.
struct Succession {
    inherited: Arc<Inherited>,
    predecessor: Option<Predecessor>,
    is_supervised: bool,
}

fn inherit(settings: &Settings) -> Result<Succession, StartError> {
    let cannot = |error: io::Error| {
        StartError::Bind(format!(
            "the sockets of the running process cannot be taken over: {error}"
        ))
    };
    let asked = settings
        .handover
        .as_deref()
        .map(handover::ask)
        .transpose()
        .map_err(cannot)?;
    let (predecessor, mut sockets) = asked
        .flatten()
        .map_or_else(Default::default, |(predecessor, sockets)| {
            (Some(predecessor), sockets)
        });
    let held = if settings.takes_supervised_sockets {
        handover::from_supervisor()?
    } else {
        Vec::new()
    };
    let is_supervised = !held.is_empty();
    sockets.extend(held);
    Ok(Succession {
        inherited: Arc::new(Inherited::new(sockets)),
        predecessor,
        is_supervised,
    })
}

fn start_admin(
    settings: &Settings,
    inherited: &Inherited,
    has_predecessor: bool,
    state: &Arc<State>,
) -> Result<(TcpListener, Running), StartError> {
    let cannot = |error: io::Error| {
        StartError::Bind(format!(
            "the admin server cannot be bound to {}: {error}",
            settings.admin
        ))
    };
    let (socket, is_inherited) =
        handover::admin_socket(inherited, settings.admin).map_err(cannot)?;
    let gate = (is_inherited && has_predecessor).then(|| inherited.gate());
    let kept = socket.try_clone()?;
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (stop, stopped) = oneshot::channel();
    let server = admin::serve(socket, state.clone(), settings.admin_token.clone(), gate);
    let thread = thread::Builder::new().name("admin".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                ended = server => if let Err(error) = ended { tracing::error!("the admin server ended: {error}") },
                _ = stopped => {}
            }
        });
    })?;
    Ok((kept, (stop, thread)))
}
