//! The load of the demo: a few callers with a steady pace.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::clock;

/// Callers, and the pause of each between two requests: together about 80 requests a second.
const CALLERS: u64 = 8;
const PAUSE: Duration = Duration::from_millis(100);

/// What callers have seen so far.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Answers of the app's that are good.
    pub(super) good: AtomicU64,
    /// Answers of the app's that are failures, and broken connections.
    pub(super) failed: AtomicU64,
    /// Refusals of the sidecar's.
    pub(super) refused: AtomicU64,
    /// The time of the last answer, in microseconds.
    pub(super) last_micros: AtomicU64,
}

/// A running load; ends when it is dropped.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) seen: Arc<Seen>,
    callers: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    pub(super) fn start(address: SocketAddr) -> Self {
        let seen = Arc::new(Seen::default());
        let callers = (0..CALLERS)
            .map(|_| tokio::spawn(call_for_ever(address, seen.clone())))
            .collect();
        Self { seen, callers }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.callers.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

async fn call_for_ever(address: SocketAddr, seen: Arc<Seen>) {
    let mut connection: Option<TcpStream> = None;
    loop {
        let began = clock::now();
        let answer = call(&mut connection, address).await;
        let micros = clock::now().saturating_duration_since(began).as_micros();
        seen.last_micros
            .store(u64::try_from(micros).unwrap_or(u64::MAX), Ordering::Relaxed);
        let count = match answer.as_deref() {
            Some(head) if head.contains("x-outrigger-reason") => &seen.refused,
            Some(head) if head.starts_with("HTTP/1.1 2") => &seen.good,
            _ => {
                connection = None;
                &seen.failed
            }
        };
        count.fetch_add(1, Ordering::Relaxed);
        clock::sleep(PAUSE).await;
    }
}

/// One request; the whole answer, or nothing if the connection broke. Answers here are small and come in one piece or two.
async fn call(connection: &mut Option<TcpStream>, address: SocketAddr) -> Option<String> {
    if connection.is_none() {
        *connection = TcpStream::connect(address).await.ok();
    }
    let stream = connection.as_mut()?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: demo\r\n\r\n")
        .await
        .ok()?;
    let mut answer = Vec::new();
    loop {
        let count = stream
            .read_buf(&mut answer)
            .await
            .ok()
            .filter(|count| *count > 0)?;
        debug_assert!(count > 0, "the end of the stream was filtered out");
        let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"))
            .and_then(|length| length.trim().parse().ok())
            .unwrap_or(0);
        if body.len() >= length {
            return Some(String::from_utf8_lossy(&answer).into_owned());
        }
    }
}
