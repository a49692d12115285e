//! A backend that runs a script for each connection. A script responds, stalls, trickles bytes,
//! sends part of a response, resets or closes.

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

use super::{TEST_TIMEOUT, client::find_bytes};

/// Backend that runs a script for each connection.
pub(crate) struct ScriptedBackend {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<ReceivedRequest>>>,
    connections: Arc<AtomicUsize>,
    is_stopped: Arc<AtomicBool>,
}

/// Request that was received completely.
#[derive(Debug, Clone)]
pub(crate) struct ReceivedRequest {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl ReceivedRequest {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    }

    pub(crate) fn request_line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }
}

/// Connection to the backend.
pub(crate) struct BackendConnection {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Number of the connection at this backend, from 1.
    pub(crate) number: usize,
    requests: Arc<Mutex<Vec<ReceivedRequest>>>,
}

impl ScriptedBackend {
    /// Starts a backend that runs the script for each connection, in a separate thread.
    pub(crate) fn start(script: impl Fn(BackendConnection) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, connections, is_stopped) = (
            Arc::new(Mutex::new(Vec::new())),
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let script = Arc::new(script);
        let (shared_requests, shared_connections, shared_is_stopped) =
            (requests.clone(), connections.clone(), is_stopped.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                if shared_is_stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                _ = stream.set_read_timeout(Some(TEST_TIMEOUT));
                _ = stream.set_nodelay(true);
                let number = shared_connections.fetch_add(1, Ordering::SeqCst) + 1;
                let connection = BackendConnection {
                    stream,
                    buffer: Vec::new(),
                    number,
                    requests: shared_requests.clone(),
                };
                let script = script.clone();
                thread::spawn(move || script(connection));
            }
        });
        Self {
            address,
            requests,
            connections,
            is_stopped,
        }
    }

    /// Starts a backend that sends what `respond` returns for each request, and keeps connections
    /// open.
    pub(crate) fn responding_with(
        respond: impl Fn(&ReceivedRequest) -> String + Send + Sync + 'static,
    ) -> Self {
        Self::start(move |mut connection| {
            while let Some(request) = connection.read_request() {
                if !connection.send(respond(&request)) {
                    return;
                }
            }
        })
    }

    /// Starts a backend whose responses have this body, and each wait for the gate.
    pub(crate) fn gated_with(body: &'static str) -> (Self, Arc<ResponseGate>) {
        let gate = ResponseGate::new();
        let backend_gate = gate.clone();
        let backend = Self::responding_with(move |_| {
            backend_gate.wait_for_release();
            ok_response(body)
        });
        (backend, gate)
    }

    /// Starts a backend that responds at once, except that requests for `/slow` wait for the gate.
    pub(crate) fn gated() -> (Self, Arc<ResponseGate>) {
        let gate = ResponseGate::new();
        let backend_gate = gate.clone();
        let backend = Self::start(move |mut connection| {
            while let Some(request) = connection.read_request() {
                if request.request_line().contains("/slow") {
                    backend_gate.wait_for_release();
                }
                connection.send(ok_response("done"));
            }
        });
        (backend, gate)
    }

    /// Starts a backend that responds 500 until the returned switch is set to `false`.
    pub(crate) fn switchable() -> (Self, Arc<AtomicBool>) {
        let is_broken = Arc::new(AtomicBool::new(true));
        let shared_is_broken = is_broken.clone();
        (
            Self::responding_with(move |_| {
                if shared_is_broken.load(Ordering::SeqCst) {
                    response(500, "broken")
                } else {
                    ok_response("fine")
                }
            }),
            is_broken,
        )
    }

    /// Starts a backend that responds 200 to every request.
    pub(crate) fn healthy() -> Self {
        Self::responding_with(|_| ok_response("hello"))
    }

    /// Returns an address without a listener.
    pub(crate) fn unused_address() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
    }

    /// Returns the requests received so far.
    pub(crate) fn requests(&self) -> Vec<ReceivedRequest> {
        self.requests.lock().unwrap().clone()
    }

    /// Returns the number of connections accepted so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for ScriptedBackend {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which then reads the flag.
        _ = TcpStream::connect(self.address);
    }
}

impl BackendConnection {
    /// Reads one request with its body. Returns `None` at the end of the connection.
    pub(crate) fn read_request(&mut self) -> Option<ReceivedRequest> {
        let head = self.read_head()?;
        let mut request = ReceivedRequest {
            head,
            body: Vec::new(),
        };
        if request.header("transfer-encoding").is_some() {
            loop {
                let line = self.read_until(b"\r\n")?;
                let size = usize::from_str_radix(String::from_utf8_lossy(&line).trim(), 16).ok()?;
                if size == 0 {
                    // Trailers, and the empty line after them.
                    while !self.read_until(b"\r\n")?.is_empty() {}
                    break;
                }
                request.body.extend(self.read_exact(size)?);
                self.read_until(b"\r\n")?;
            }
        } else if let Some(length) = request
            .header("content-length")
            .and_then(|length| length.parse().ok())
        {
            request.body = self.read_exact(length)?;
        }
        self.requests.lock().unwrap().push(request.clone());
        Some(request)
    }

    /// Reads one head, and leaves the body in the buffer.
    pub(crate) fn read_head(&mut self) -> Option<String> {
        self.read_until(b"\r\n\r\n")
            .map(|head| String::from_utf8_lossy(&head).into_owned())
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// Reads exactly `count` bytes. Returns `None` at the end of the connection.
    pub(crate) fn read_exact(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < count {
            if !self.read_more() {
                return None;
            }
        }
        Some(self.buffer.drain(..count).collect())
    }

    /// Sets the time after which a read for the next request fails.
    pub(crate) fn close_when_idle_for(&self, timeout: std::time::Duration) {
        self.stream.set_read_timeout(Some(timeout)).unwrap();
    }

    /// Reads and discards bytes until the peer closes the connection.
    pub(crate) fn wait_for_close(&mut self) {
        while self.read_more() {
            self.buffer.clear();
        }
    }

    /// Keeps the connection open without reading, until the peer closes it or [`TEST_TIMEOUT`]
    /// ends.
    pub(crate) fn stay_open_without_reading(&self) {
        let mut probe = [0_u8; 1];
        let deadline = std::time::Instant::now() + TEST_TIMEOUT;
        _ = self.stream.set_nonblocking(true);
        while std::time::Instant::now() < deadline {
            // `peek` consumes nothing, so the receive window stays closed.
            match self.stream.peek(&mut probe) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
            thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Resets the connection.
    pub(crate) fn reset(self) {
        socket2::SockRef::from(&self.stream)
            .set_linger(Some(std::time::Duration::ZERO))
            .unwrap();
    }

    fn read_until(&mut self, delimiter: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = find_bytes(&self.buffer, delimiter) {
                let found = self.buffer[..end].to_vec();
                self.buffer.drain(..end + delimiter.len());
                return Some(found);
            }
            if !self.read_more() {
                return None;
            }
        }
    }

    fn read_more(&mut self) -> bool {
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

/// Returns a response with status 200 and this body.
pub(crate) fn ok_response(body: &str) -> String {
    response(200, body)
}

/// Returns a response with this status and this body.
pub(crate) fn response(status: u16, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} Word\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Gate at which scripts wait until the test releases them.
pub(crate) struct ResponseGate {
    release_sender: Mutex<std::sync::mpsc::Sender<()>>,
    release_receiver: Mutex<Receiver<()>>,
}

impl ResponseGate {
    pub(crate) fn new() -> Arc<Self> {
        let (release_sender, release_receiver) = channel();
        Arc::new(Self {
            release_sender: Mutex::new(release_sender),
            release_receiver: Mutex::new(release_receiver),
        })
    }

    /// Releases one script that waits, or the next one that arrives.
    pub(crate) fn release_one(&self) {
        self.release_sender.lock().unwrap().send(()).unwrap();
    }

    /// Waits until the test releases this script.
    pub(crate) fn wait_for_release(&self) {
        self.release_receiver
            .lock()
            .unwrap()
            .recv_timeout(TEST_TIMEOUT)
            .expect("the test releases the gate");
    }
}
