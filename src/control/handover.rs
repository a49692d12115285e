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
        lifecycle::{Lifecycle, condition},
        listening::{BoundSocket, Gate, Inheritance, Inherited, ListenerSet},
    },
};

/// Sockets that are handed over at once: far more than an instance has listeners, and fewer than the system sends in one message (253).
const MAX_SOCKETS: usize = 128;

/// The longest description of them.
const MAX_TEXT: usize = 64 << 10;

/// How long a successor waits for the sockets, and for the other to let go.
const PATIENCE: Duration = Duration::from_secs(5);

/// What each says when it is its turn.
const WORD: &[u8] = b"1";

/// After a failure.
const PAUSE: Duration = Duration::from_millis(100);

/// How long sockets that a supervisor holds wait for this instance to become ready: by then who is connected has waited long enough.
const SUPERVISED_TIME: Duration = Duration::from_secs(10);

/// How long a successor may take to be ready: what the other waits, less the time to start at all.
const READY_TIME: Duration = Duration::from_secs(45);

/// How long a successor is waited for.
const START_TIME: Duration = Duration::from_mins(1);

/// The process that is to be replaced.
#[derive(Debug)]
pub struct Predecessor {
    stream: StdUnixStream,
    /// For how long it has been ready, if it was.
    pub ready_for: Option<Duration>,
}

/// Asks the process that listens at `path`, if there is one, for its sockets.
///
/// # Errors
/// If there is one, and it does not give them, or is somebody else's.
pub fn ask(path: &Path) -> io::Result<Option<(Predecessor, Vec<BoundSocket>)>> {
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
    is_trusted(rustix::net::sockopt::socket_peercred(&stream)?.uid.as_raw())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (text, handles) = receive(&stream)?;
    let message: Value = serde_json::from_slice(&text)?;
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
        let asked = described["asked"]
            .as_str()
            .and_then(|asked| asked.parse().ok());
        let asked: SocketAddr =
            asked.ok_or_else(|| io::Error::other("a socket without its address"))?;
        Ok(BoundSocket {
            owner: described["owner"].as_str().unwrap_or_default().to_owned(),
            asked,
            socket: handle.into(),
        })
    });
    let sockets = sockets.collect::<io::Result<_>>()?;
    Ok(Some((
        Predecessor {
            stream,
            ready_for: message["ready_for_ms"].as_u64().map(Duration::from_millis),
        },
        sockets,
    )))
}

/// Only our own user, or root, who may do everything anyway.
fn is_trusted(uid: u32) -> io::Result<()> {
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
pub fn from_supervisor() -> io::Result<Vec<BoundSocket>> {
    let mut held = listenfd::ListenFd::from_env();
    let mut sockets = Vec::new();
    for index in 0..held.len() {
        let socket = held
            .take_tcp_listener(index)?
            .ok_or_else(|| io::Error::other("a socket was taken already"))?;
        sockets.push(BoundSocket {
            owner: String::new(),
            asked: socket.local_addr()?,
            socket,
        });
    }
    Ok(sockets)
}

impl Predecessor {
    fn stream(self) -> io::Result<UnixStream> {
        self.stream.set_nonblocking(true)?;
        UnixStream::from_std(self.stream)
    }
}

/// Says that this process serves, and waits until the other takes no more connections.
async fn relieve(mut predecessor: UnixStream) -> io::Result<()> {
    predecessor.write_all(WORD).await?;
    clock::within(Some(PATIENCE), predecessor.read_exact(&mut [0]))
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
    inherited: &Inherited,
    predecessor: Option<Predecessor>,
) -> Result<(), String> {
    let lifecycle = &state.lifecycle;
    let predecessor = predecessor
        .map(Predecessor::stream)
        .transpose()
        .map_err(|error| format!("the process that runs cannot be talked to: {error}"))?;
    if let Some(mut predecessor) = predecessor {
        let mut nothing = [0];
        let waited = tokio::select! {
            is_ready = clock::within(Some(READY_TIME), lifecycle.until(Lifecycle::is_ready)) => Some(is_ready),
            // It says nothing before us: it is gone, and nobody serves.
            _ = predecessor.read(&mut nothing) => None,
        };
        match waited {
            Some(Ok(())) => {
                inherited.open(Gate::Open);
                if let Err(error) = relieve(predecessor).await {
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
                    .map(|condition| condition.why)
                    .collect();
                return Err(format!(
                    "this process is not ready after {READY_TIME:?} ({}); the one that runs goes on",
                    unmet.join(", ")
                ));
            }
            None => tracing::warn!("the process that ran before is gone before this one is ready"),
        }
    }
    if listeners.inheritance() != Inheritance::None {
        // What the app asks is part of how it becomes ready, so that it must not wait for that. Who waits too long is served all the same.
        _ = clock::within(
            Some(SUPERVISED_TIME),
            lifecycle.until(|lifecycle| lifecycle.is_met(condition::ENDPOINTS)),
        )
        .await;
        inherited.open(Gate::ForApp);
        _ = clock::within(Some(SUPERVISED_TIME), lifecycle.until(Lifecycle::is_ready)).await;
    }
    inherited.open(Gate::Open);
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
    post: Post,
}

#[derive(Debug)]
struct Post {
    listener: UnixListener,
    handover: Handover,
}

/// Waits for a successor where it is told to, and reports it; never ends. It is a task of its own, so that nothing else that happens interrupts
/// a handing over.
pub(super) async fn wait(
    handover: Option<Handover>,
    state: Arc<State>,
    listeners: Arc<dyn ListenerSet>,
    successors: mpsc::Sender<Successor>,
) {
    if let Some(handover) = handover {
        match listen(&handover.path) {
            Ok(listener) => {
                let successor = Post { listener, handover }
                    .successor(&state, listeners.as_ref())
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
    pub(super) async fn let_go(self) {
        let Self {
            mut stream,
            post: Post { listener, handover },
        } = self;
        drop(listener);
        // If it is gone, it is left.
        _ = fs::remove_file(handover.path);
        // A successor that is gone by now took over all the same.
        _ = stream.write_all(WORD).await;
    }
}

impl Post {
    async fn successor(self, state: &State, listeners: &dyn ListenerSet) -> Successor {
        loop {
            match self.one(state, listeners).await {
                Ok(Some(stream)) => return Successor { stream, post: self },
                Ok(None) => {
                    tracing::warn!("a process that was to take over has failed; this one goes on")
                }
                Err(error) => {
                    tracing::warn!("the sockets cannot be handed over: {error}");
                    clock::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn one(
        &self,
        state: &State,
        listeners: &dyn ListenerSet,
    ) -> io::Result<Option<UnixStream>> {
        let (mut stream, _) = self.listener.accept().await?;
        is_trusted(stream.peer_cred()?.uid())?;
        let mut sockets = listeners.sockets()?;
        let BoundSocket {
            owner,
            asked,
            socket,
        } = &self.handover.admin;
        sockets.push(BoundSocket {
            owner: owner.clone(),
            asked: *asked,
            socket: socket.try_clone()?,
        });
        stream.writable().await?;
        send(&stream, &sockets, state.lifecycle.youth.age(clock::now()))?;
        let mut word = [0];
        let said = clock::within(Some(START_TIME), stream.read(&mut word)).await;
        Ok(matches!(said, Ok(Ok(1))).then_some(stream))
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
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

fn send(
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
        .map(|bound| json!({"owner": bound.owner, "asked": bound.asked.to_string()}))
        .collect();
    let ready_for = ready_for.and_then(|age| u64::try_from(age.as_millis()).ok());
    let text = serde_json::to_vec(&json!({"sockets": described, "ready_for_ms": ready_for}))?;
    let handles: Vec<_> = sockets.iter().map(|bound| bound.socket.as_fd()).collect();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&handles));
    // The length first, so that the other side knows when it has all of it.
    let length = u32::try_from(text.len())
        .map_err(io::Error::other)?
        .to_be_bytes();
    let whole = [&length[..], &text].concat();
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

fn receive(stream: &StdUnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let (mut text, mut handles) = (Vec::new(), Vec::new());
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
        text.extend_from_slice(&piece[..received]);
        let length = text
            .get(..4)
            .and_then(|length| length.try_into().ok())
            .map(u32::from_be_bytes);
        match length.and_then(|length| usize::try_from(length).ok()) {
            Some(length) if length > MAX_TEXT => return Err(io::ErrorKind::InvalidData.into()),
            Some(length) if text.len() >= 4 + length => {
                return Ok((text[4..4 + length].to_vec(), handles));
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
pub fn admin_socket(inherited: &Inherited, asked: SocketAddr) -> io::Result<(TcpListener, bool)> {
    let (socket, is_inherited) = match inherited.take(ADMIN, asked) {
        Some(socket) => (socket, true),
        None => (TcpListener::bind(asked)?, false),
    };
    socket.set_nonblocking(true)?;
    Ok((socket, is_inherited))
}

/// Whose socket that of the admin server is.
pub const ADMIN: &str = "admin";
