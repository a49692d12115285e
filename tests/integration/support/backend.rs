//! A backend that does exactly what its script says: answer, stall, trickle, half-answer, reset, close.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{Receiver, channel},
    },
    thread,
};

use super::{PATIENCE, client::find};

/// A running backend.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<AtomicUsize>,
    is_stopped: Arc<AtomicBool>,
}

/// A request that arrived whole.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    }

    pub(crate) fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }
}

/// One connection to the backend.
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Its number, from 1.
    pub(crate) number: usize,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Backend {
    /// Runs a script for each connection, in a thread of its own.
    pub(crate) fn start(script: impl Fn(Connection) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, connections, is_stopped) = (
            Arc::new(Mutex::new(Vec::new())),
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let script = Arc::new(script);
        let (seen_there, connections_there, stopped_there) =
            (seen.clone(), connections.clone(), is_stopped.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped_there.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                _ = stream.set_read_timeout(Some(PATIENCE));
                _ = stream.set_nodelay(true);
                let number = connections_there.fetch_add(1, Ordering::SeqCst) + 1;
                let connection = Connection {
                    stream,
                    buffer: Vec::new(),
                    number,
                    seen: seen_there.clone(),
                };
                let script = script.clone();
                thread::spawn(move || script(connection));
            }
        });
        Self {
            address,
            seen,
            connections,
            is_stopped,
        }
    }

    /// Answers every request with the bytes that `answer` makes of it, and keeps connections.
    pub(crate) fn answering(answer: impl Fn(&Seen) -> String + Send + Sync + 'static) -> Self {
        Self::start(move |mut connection| {
            while let Some(request) = connection.request() {
                if !connection.send(answer(&request)) {
                    return;
                }
            }
        })
    }

    /// An app that answers at once, except at `/slow`: there each request waits for the gate.
    pub(crate) fn gated() -> (Self, Arc<Gate>) {
        let gate = Gate::new();
        let there = gate.clone();
        let backend = Self::start(move |mut connection| {
            while let Some(request) = connection.request() {
                if request.line().contains("/slow") {
                    there.pass();
                }
                connection.send(ok("done"));
            }
        });
        (backend, gate)
    }

    /// An app that is broken until the switch is turned off.
    pub(crate) fn switchable() -> (Self, Arc<AtomicBool>) {
        let is_broken = Arc::new(AtomicBool::new(true));
        let there = is_broken.clone();
        (
            Self::answering(move |_| {
                if there.load(Ordering::SeqCst) {
                    answer(500, "broken")
                } else {
                    ok("fine")
                }
            }),
            is_broken,
        )
    }

    /// Answers every request with 200 and a few bytes.
    pub(crate) fn healthy() -> Self {
        Self::answering(|_| ok("hello"))
    }

    /// An address at which nobody listens.
    pub(crate) fn nowhere() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
    }

    /// The requests that arrived so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The connections that were made so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, so that it sees the word.
        _ = TcpStream::connect(self.address);
    }
}

impl Connection {
    /// Reads one request with its body; `None` at the end of the connection.
    pub(crate) fn request(&mut self) -> Option<Seen> {
        let head = self.head()?;
        let mut seen = Seen {
            head,
            body: Vec::new(),
        };
        if seen.header("transfer-encoding").is_some() {
            loop {
                let line = self.until(b"\r\n")?;
                let size = usize::from_str_radix(String::from_utf8_lossy(&line).trim(), 16).ok()?;
                let chunk = self.exactly(size)?;
                self.until(b"\r\n")?;
                if size == 0 {
                    break;
                }
                seen.body.extend(chunk);
            }
        } else if let Some(length) = seen
            .header("content-length")
            .and_then(|length| length.parse().ok())
        {
            seen.body = self.exactly(length)?;
        }
        self.seen.lock().unwrap().push(seen.clone());
        Some(seen)
    }

    /// Reads one head and leaves the body where it is.
    pub(crate) fn head(&mut self) -> Option<String> {
        self.until(b"\r\n\r\n")
            .map(|head| String::from_utf8_lossy(&head).into_owned())
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// Reads exactly so many bytes.
    pub(crate) fn exactly(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < count {
            if !self.more() {
                return None;
            }
        }
        Some(self.buffer.drain(..count).collect())
    }

    /// Gives up on the next request after so long.
    pub(crate) fn close_when_idle_for(&self, longest: std::time::Duration) {
        self.stream.set_read_timeout(Some(longest)).unwrap();
    }

    /// Whether the other side has closed; reads and throws away what comes before that.
    pub(crate) fn wait_for_close(&mut self) {
        while self.more() {
            self.buffer.clear();
        }
    }

    /// Keeps the connection open without reading, until the sidecar is gone or a test's patience is over.
    pub(crate) fn wait_for_nothing(&self) {
        let mut probe = [0_u8; 1];
        let deadline = std::time::Instant::now() + PATIENCE;
        _ = self.stream.set_nonblocking(true);
        while std::time::Instant::now() < deadline {
            // Looks without taking, so that the other side's window stays shut.
            match self.stream.peek(&mut probe) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
            thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Ends the connection with a reset.
    pub(crate) fn reset(self) {
        socket2::SockRef::from(&self.stream)
            .set_linger(Some(std::time::Duration::ZERO))
            .unwrap();
    }

    fn until(&mut self, mark: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = find(&self.buffer, mark) {
                let found = self.buffer[..end].to_vec();
                self.buffer.drain(..end + mark.len());
                return Some(found);
            }
            if !self.more() {
                return None;
            }
        }
    }

    fn more(&mut self) -> bool {
        let mut chunk = [0; 16 << 10];
        match self.stream.read(&mut chunk) {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                true
            }
        }
    }
}

/// A plain 200.
pub(crate) fn ok(body: &str) -> String {
    answer(200, body)
}

/// A plain answer.
pub(crate) fn answer(status: u16, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} Word\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A gate that lets scripts wait for the test.
pub(crate) struct Gate {
    open: Mutex<std::sync::mpsc::Sender<()>>,
    wait: Mutex<Receiver<()>>,
}

impl Gate {
    pub(crate) fn new() -> Arc<Self> {
        let (open, wait) = channel();
        Arc::new(Self {
            open: Mutex::new(open),
            wait: Mutex::new(wait),
        })
    }

    /// Lets one through.
    pub(crate) fn open(&self) {
        self.open.lock().unwrap().send(()).unwrap();
    }

    /// Waits to be let through.
    pub(crate) fn pass(&self) {
        self.wait
            .lock()
            .unwrap()
            .recv_timeout(PATIENCE)
            .expect("the gate was opened");
    }
}
