//! Handing the sockets of one process over to the next, so that no connection is refused while the program is replaced.
//!
//! The running process listens on a socket in the file system. Its successor connects there, gets handles on all listening sockets, starts
//! with them, and says so once it is ready; until that moment it may still fail, and nothing has happened. From then on the system gives new
//! connections to the successor alone; the old process finishes what it has, and goes. The two share the queue of each socket, so
//! that nothing is lost in between.
//!
//! | successor | process that runs |
//! | --- | --- |
//! | connects | sends the handles, and what each is |
//! | reads policies, finds endpoints, checks them, takes connections | goes on as before |
//! | says that it serves | takes no more connections, and leaves the path in the file system |
//! | listens at the path itself | finishes what it has |

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, PermissionsExt},
            net::UnixStream as StdUnixStream,
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::mpsc,
};

use crate::{
    clock,
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

/// Sockets that are handed over at once: far more than an instance has listeners, and fewer than the system sends in one message (253).
const MAX_SOCKETS: usize = 128;

/// The longest description of them.
const MAX_DESCRIPTION_BYTES: usize = 64 << 10;

/// How long a successor waits for the sockets, and for the other to let go.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);

/// What each says when it is its turn.
const ACKNOWLEDGEMENT: &[u8] = b"1";

/// After a failure.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// How long sockets that a supervisor holds wait for this instance to become ready: by then who is connected has waited long enough.
const SUPERVISED_READY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a successor may take to be ready: what the other waits, less the time to start at all.
const READY_TIMEOUT: Duration = Duration::from_secs(45);

/// How long a successor is waited for.
const SUCCESSOR_START_TIMEOUT: Duration = Duration::from_mins(1);

/// The process that is to be replaced.
#[derive(Debug)]
pub struct Predecessor {
    stream: StdUnixStream,
    /// For how long it has been ready, if it was.
    pub ready_duration: Option<Duration>,
}

/// Asks the process that listens at `path`, if there is one, for its sockets.
///
/// # Errors
/// If there is one, and it does not give them, or is somebody else's.
pub fn request_sockets(path: &Path) -> io::Result<Option<(Predecessor, Vec<BoundSocket>)>> {
    let stream = match StdUnixStream::connect(path) {
        Ok(stream) => stream,
        // Nobody is there, or nobody is left.
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
    // Else whoever can write there could give us a socket that he reads from, too.
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

/// Only our own user, or root, who may do everything anyway.
fn verify_peer_user(uid: u32) -> io::Result<()> {
    if uid == rustix::process::geteuid().as_raw() || uid == 0 {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!("the other process is one of the user {uid}"),
    ))
}

/// The sockets that a supervisor holds for this process, after the protocol of systemd (`sd_listen_fds`).
///
/// # Errors
/// If one of them cannot be used.
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

/// Says that this process serves, and waits until the other takes no more connections.
async fn confirm_takeover(mut predecessor: UnixStream) -> io::Result<()> {
    predecessor.write_all(ACKNOWLEDGEMENT).await?;
    clock::timeout(Some(PEER_TIMEOUT), predecessor.read_exact(&mut [0]))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map(drop)
}

/// Begins to take connections at the sockets that somebody else has bound, once this instance is ready: until then a predecessor takes them, or they wait.
/// Then the predecessor may go.
///
/// # Errors
/// If this instance does not become ready; then the predecessor goes on.
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
        let readiness = tokio::select! {
            is_ready = clock::timeout(Some(READY_TIMEOUT), lifecycle.wait_until(Lifecycle::is_ready)) => Some(is_ready),
            // It says nothing before us: it is gone, and nobody serves.
            _ = predecessor.read(&mut nothing) => None,
        };
        match readiness {
            Some(Ok(())) => {
                inherited.set_accept_scope(AcceptScope::All);
                if let Err(error) = confirm_takeover(predecessor).await {
                    // It has our word, or is gone; both serve, or only we do.
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
                    "this process is not ready after {READY_TIMEOUT:?} ({}); the one that runs goes on",
                    unmet.join(", ")
                ));
            }
            None => tracing::warn!("the process that ran before is gone before this one is ready"),
        }
    }
    if listeners.inherited_share() != InheritedShare::None {
        // What the app asks is part of how it becomes ready, so that it must not wait for that. Who waits too long is served all the same.
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

/// What is handed over besides the listeners.
#[derive(Debug)]
pub struct Handover {
    /// Where a successor asks.
    pub path: PathBuf,
    /// The socket of the admin server.
    pub admin: BoundSocket,
}

/// A process that serves in our place, and waits for us to let go.
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

/// Waits for a successor where it is told to, and reports it; never ends. It is a task of its own, so that nothing else that happens interrupts
/// a handing over.
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
                // If nobody wants to know, this process is ending.
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
    /// Leaves the path to it, and lets go.
    pub(super) async fn release(self) {
        let Self {
            mut stream,
            successor_listener: SuccessorListener { listener, handover },
        } = self;
        drop(listener);
        // If it is gone, it is left.
        _ = fs::remove_file(handover.path);
        // A successor that is gone by now took over all the same.
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

fn send_sockets(
    stream: &UnixStream,
    sockets: &[BoundSocket],
    ready_for: Option<Duration>,
) -> io::Result<()> {
    if sockets.len() > MAX_SOCKETS {
        return Err(io::Error::other(format!(
            "there are {} sockets, and no more than {MAX_SOCKETS} can be handed over",
            sockets.len()
        )));
    }
    let described: Vec<Value> = sockets
        .iter()
        .map(|bound| json!({"owner": bound.owner, "asked": bound.requested_address.to_string()}))
        .collect();
    let ready_for = ready_for.and_then(|age| u64::try_from(age.as_millis()).ok());
    let description =
        serde_json::to_vec(&json!({"sockets": described, "ready_for_ms": ready_for}))?;
    let handles: Vec<_> = sockets.iter().map(|bound| bound.socket.as_fd()).collect();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&handles));
    // The length first, so that the other side knows when it has all of it.
    let length = u32::try_from(description.len())
        .map_err(io::Error::other)?
        .to_be_bytes();
    let whole = [&length[..], &description].concat();
    let sent = sendmsg(
        stream,
        &[IoSlice::new(&whole)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    if sent == whole.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

fn receive_sockets(stream: &StdUnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let (mut description, mut handles) = (Vec::new(), Vec::new());
    loop {
        let mut piece = vec![0; 8 << 10];
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            stream,
            &mut [IoSliceMut::new(&mut piece)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )?
        .bytes;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                handles.extend(rights);
            }
        }
        description.extend_from_slice(&piece[..received]);
        let length = description
            .get(..4)
            .and_then(|length| length.try_into().ok())
            .map(u32::from_be_bytes);
        match length.and_then(|length| usize::try_from(length).ok()) {
            Some(length) if length > MAX_DESCRIPTION_BYTES => {
                return Err(io::ErrorKind::InvalidData.into());
            }
            Some(length) if description.len() >= 4 + length => {
                return Ok((description[4..4 + length].to_vec(), handles));
            }
            _ if received == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => {}
        }
    }
}

/// Binds the admin server's address, or takes its socket over; and whether it did.
///
/// # Errors
/// If the address cannot be bound.
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

/// Whose socket that of the admin server is.
pub const ADMIN_OWNER: &str = "admin";
