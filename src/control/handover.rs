//! Hands the listening sockets of a running process to its successor, so that no connection is
//! refused during an upgrade.
//!
//! This module decides when the successor starts to accept and when the predecessor stops. The
//! running process listens on a Unix socket. The successor connects to it, receives a file
//! descriptor for each listening socket, starts with them, and confirms once it is ready. Until
//! that confirmation the successor can fail without any effect. Both processes share the accept
//! queue of each socket, so no connection is lost in between. The module does not know HTTP,
//! and it moves no open connections: the old process finishes those itself.
//!
//! | step | successor | running process |
//! | --- | --- | --- |
//! | 1 | connects | sends descriptors, owners and addresses |
//! | 2 | loads policies, resolves and checks endpoints | continues to serve |
//! | 3 | accepts connections, confirms that it is ready | stops accepting, acknowledges |
//! | 4 | listens on the Unix socket path | finishes its requests, terminates |

mod socket_message;

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::UnixStream as StdUnixStream,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::mpsc,
};

use crate::{
    clock,
    control::handover::socket_message::{receive_sockets, send_sockets, verify_peer_user},
    state::{
        State,
        instance::{
            lifecycle::{Lifecycle, condition},
            listener_sockets::{
                AcceptScope, BoundSocket, InheritedShare, InheritedSockets, ListenerSet,
            },
        },
    },
};

/// Time for which a successor waits for the sockets, and for the acknowledgement of its
/// predecessor.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);

/// Byte that the successor sends when it is ready, and that the predecessor sends back after it
/// stopped accepting.
const ACKNOWLEDGEMENT: &[u8] = b"1";

/// Delay before the next successor is accepted after a failed handover.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Maximum duration of each of two waits before an instance accepts on sockets without a
/// running predecessor: for endpoints, and for readiness. After that it accepts anyway, because
/// clients are already waiting in the accept queue.
const SUPERVISED_READY_TIMEOUT: Duration = Duration::from_secs(10);

/// Time within which a successor must become ready. It is shorter than
/// [`SUCCESSOR_START_TIMEOUT`] by the time to start the process.
const READY_TIMEOUT: Duration = Duration::from_secs(45);

/// Time for which the running process waits for the confirmation of a successor that has
/// received the sockets.
const SUCCESSOR_START_TIMEOUT: Duration = Duration::from_mins(1);

/// The running process that this instance replaces.
#[derive(Debug)]
pub struct Predecessor {
    stream: StdUnixStream,
    /// Time since the predecessor became ready; `None` if it was not ready.
    pub ready_duration: Option<Duration>,
}

/// Requests the listening sockets from the process at the Unix socket `path`. Returns `None` if
/// no process listens there.
///
/// # Errors
/// If the process cannot be reached, runs under another user, does not send its sockets within
/// 5 seconds, or sends an invalid description.
pub fn request_sockets(path: &Path) -> io::Result<Option<(Predecessor, Vec<BoundSocket>)>> {
    let stream = match StdUnixStream::connect(path) {
        Ok(stream) => stream,
        // No process has ever listened at this path, or the last one has ended.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    // Without this check, another user with access to the path could provide sockets and read
    // their traffic.
    verify_peer_user(rustix::net::sockopt::socket_peercred(&stream)?.uid.as_raw())?;
    stream.set_read_timeout(Some(PEER_TIMEOUT))?;
    let (description, handles) = receive_sockets(&stream)?;
    let message: Value = serde_json::from_slice(&description)?;
    let described = message["sockets"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if described.len() != handles.len() {
        return Err(io::Error::other(
            "the running process describes other sockets than it sends",
        ));
    }
    let sockets = described.iter().zip(handles).map(|(described, handle)| {
        let requested_address = described["asked"]
            .as_str()
            .and_then(|requested_address| requested_address.parse().ok());
        let requested_address: SocketAddr =
            requested_address.ok_or_else(|| io::Error::other("a socket without its address"))?;
        Ok(BoundSocket {
            owner: described["owner"].as_str().unwrap_or_default().to_owned(),
            requested_address,
            socket: handle.into(),
        })
    });
    let sockets = sockets.collect::<io::Result<_>>()?;
    Ok(Some((
        Predecessor {
            stream,
            ready_duration: message["ready_for_ms"].as_u64().map(Duration::from_millis),
        },
        sockets,
    )))
}

/// Takes the sockets that a supervisor passed to this process through the systemd protocol
/// (`sd_listen_fds`).
///
/// # Errors
/// If a descriptor is not a listening TCP socket or its address cannot be read.
pub fn take_supervised_sockets() -> io::Result<Vec<BoundSocket>> {
    let mut listen_fds = listenfd::ListenFd::from_env();
    let mut sockets = Vec::new();
    for index in 0..listen_fds.len() {
        let socket = listen_fds
            .take_tcp_listener(index)?
            .ok_or_else(|| io::Error::other("a socket was taken already"))?;
        sockets.push(BoundSocket {
            owner: String::new(),
            requested_address: socket.local_addr()?,
            socket,
        });
    }
    Ok(sockets)
}

impl Predecessor {
    fn into_async_stream(self) -> io::Result<UnixStream> {
        self.stream.set_nonblocking(true)?;
        UnixStream::from_std(self.stream)
    }
}

/// Confirms that this process accepts connections, and waits until the predecessor has stopped
/// accepting.
async fn confirm_takeover(mut predecessor: UnixStream) -> io::Result<()> {
    predecessor.write_all(ACKNOWLEDGEMENT).await?;
    clock::timeout(Some(PEER_TIMEOUT), predecessor.read_exact(&mut [0]))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map(drop)
}

/// Opens the inherited sockets for accepting once this instance is ready, and then releases the
/// predecessor.
///
/// Until then the predecessor accepts the connections, or they wait in the accept queue.
/// Without a predecessor, or if it ends early, the wait is limited and outbound listeners open
/// first.
///
/// # Errors
/// If a predecessor is running and this instance is not ready within 45 seconds, or if the
/// connection to the predecessor cannot be used. The predecessor then continues to serve.
pub(super) async fn take_over(
    state: &State,
    listeners: &dyn ListenerSet,
    inherited: &InheritedSockets,
    predecessor: Option<Predecessor>,
) -> Result<(), String> {
    let lifecycle = &state.lifecycle;
    let predecessor = predecessor
        .map(Predecessor::into_async_stream)
        .transpose()
        .map_err(|error| format!("the process that runs cannot be talked to: {error}"))?;
    if let Some(mut predecessor) = predecessor {
        let mut nothing = [0];
        let ready = lifecycle.wait_until(Lifecycle::is_ready);
        let readiness = tokio::select! {
            is_ready = clock::timeout(Some(READY_TIMEOUT), ready) => Some(is_ready),
            // The predecessor sends nothing before the confirmation, so a completed read means
            // that it has ended and nobody accepts.
            _ = predecessor.read(&mut nothing) => None,
        };
        match readiness {
            Some(Ok(())) => {
                inherited.set_accept_scope(AcceptScope::All);
                if let Err(error) = confirm_takeover(predecessor).await {
                    // The predecessor may still be accepting, or it has ended. This instance
                    // accepts in both cases, so no client is refused.
                    tracing::warn!(
                        "the process that ran before does not say that it lets go: {error}"
                    );
                }
                return Ok(());
            }
            Some(Err(clock::Elapsed)) => {
                let unmet: Vec<String> = lifecycle
                    .conditions()
                    .into_iter()
                    .filter(|condition| !condition.is_met)
                    .map(|condition| condition.reason)
                    .collect();
                return Err(format!(
                    "this process is not ready after {READY_TIMEOUT:?} ({}); the one that runs \
                     goes on",
                    unmet.join(", ")
                ));
            }
            None => tracing::warn!("the previous process ended before this one is ready"),
        }
    }
    if listeners.inherited_share() != InheritedShare::None {
        // The app may need outbound requests to become ready, so outbound listeners cannot wait
        // for readiness. Both time-outs are ignored: the sockets open in any case.
        _ = clock::timeout(
            Some(SUPERVISED_READY_TIMEOUT),
            lifecycle.wait_until(|lifecycle| lifecycle.is_met(condition::ENDPOINTS)),
        )
        .await;
        inherited.set_accept_scope(AcceptScope::Outbound);
        _ = clock::timeout(
            Some(SUPERVISED_READY_TIMEOUT),
            lifecycle.wait_until(Lifecycle::is_ready),
        )
        .await;
    }
    inherited.set_accept_scope(AcceptScope::All);
    Ok(())
}

/// Handover endpoint of this process, and the socket that is handed over in addition to the
/// listeners.
#[derive(Debug)]
pub struct Handover {
    /// Path of the Unix socket on which this process accepts a successor.
    path: PathBuf,
    /// Listening socket of the admin server.
    admin: BoundSocket,
}

impl Handover {
    /// Creates a handover over the Unix socket `path`. It includes the admin server's socket,
    /// which was bound for `admin_address`.
    #[must_use]
    pub fn new(path: PathBuf, admin_address: SocketAddr, admin_socket: TcpListener) -> Self {
        Self {
            path,
            admin: BoundSocket {
                owner: ADMIN_OWNER.to_owned(),
                requested_address: admin_address,
                socket: admin_socket,
            },
        }
    }
}

/// A ready successor that waits until this process stops accepting.
#[derive(Debug)]
pub(super) struct Successor {
    stream: UnixStream,
    successor_listener: SuccessorListener,
}

#[derive(Debug)]
struct SuccessorListener {
    listener: UnixListener,
    handover: Handover,
}

/// Accepts one successor at the handover path and sends it to `successors`. Never returns.
///
/// It runs as a task of its own, so that no other event of the main loop interrupts a handover.
pub(super) async fn wait_for_successor(
    handover: Option<Handover>,
    state: Arc<State>,
    listeners: Arc<dyn ListenerSet>,
    successors: mpsc::Sender<Successor>,
) {
    if let Some(handover) = handover {
        match bind_path(&handover.path) {
            Ok(listener) => {
                let successor = SuccessorListener { listener, handover }
                    .accept_successor(&state, listeners.as_ref())
                    .await;
                // A closed channel means that this process is already terminating.
                _ = successors.send(successor).await;
            }
            Err(error) => tracing::error!(
                "no process can take over: {}: {error}",
                handover.path.display()
            ),
        }
    }
    std::future::pending().await
}

impl Successor {
    /// Frees the Unix socket path for the successor and sends the acknowledgement. The caller
    /// has already stopped accepting.
    pub(super) async fn release(self) {
        let Self {
            mut stream,
            successor_listener: SuccessorListener { listener, handover },
        } = self;
        drop(listener);
        // A missing file needs no removal.
        _ = fs::remove_file(handover.path);
        // The successor may have ended after its confirmation; this process has stopped
        // accepting in any case.
        _ = stream.write_all(ACKNOWLEDGEMENT).await;
    }
}

impl SuccessorListener {
    async fn accept_successor(self, state: &State, listeners: &dyn ListenerSet) -> Successor {
        loop {
            match self.try_hand_over(state, listeners).await {
                Ok(Some(stream)) => {
                    return Successor {
                        stream,
                        successor_listener: self,
                    };
                }
                Ok(None) => {
                    tracing::warn!("a process that was to take over has failed; this one goes on")
                }
                Err(error) => {
                    tracing::warn!("the sockets cannot be handed over: {error}");
                    clock::sleep(ACCEPT_RETRY_DELAY).await;
                }
            }
        }
    }

    async fn try_hand_over(
        &self,
        state: &State,
        listeners: &dyn ListenerSet,
    ) -> io::Result<Option<UnixStream>> {
        let (mut stream, _) = self.listener.accept().await?;
        verify_peer_user(stream.peer_cred()?.uid())?;
        let mut sockets = listeners.duplicate_sockets()?;
        let BoundSocket {
            owner,
            requested_address,
            socket,
        } = &self.handover.admin;
        sockets.push(BoundSocket {
            owner: owner.clone(),
            requested_address: *requested_address,
            socket: socket.try_clone()?,
        });
        stream.writable().await?;
        send_sockets(
            &stream,
            &sockets,
            state.lifecycle.instance_age.age(clock::now()),
        )?;
        let mut byte = [0];
        let read_result =
            clock::timeout(Some(SUCCESSOR_START_TIMEOUT), stream.read(&mut byte)).await;
        Ok(matches!(read_result, Ok(Ok(1))).then_some(stream))
    }
}

fn bind_path(path: &Path) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => return Err(io::Error::other("there is something else than a socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Binds the admin socket, or takes the inherited one. Also returns whether the socket is
/// inherited.
///
/// # Errors
/// The error of the system if the address cannot be bound.
pub fn bind_admin_socket(
    inherited: &InheritedSockets,
    requested_address: SocketAddr,
) -> io::Result<(TcpListener, bool)> {
    let (socket, is_inherited) = match inherited.take(ADMIN_OWNER, requested_address) {
        Some(socket) => (socket, true),
        None => (TcpListener::bind(requested_address)?, false),
    };
    socket.set_nonblocking(true)?;
    Ok((socket, is_inherited))
}

/// Owner name that marks the admin socket among the handed-over sockets.
const ADMIN_OWNER: &str = "admin";
