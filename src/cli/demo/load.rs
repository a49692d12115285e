//! The load of the demo: eight clients that send requests at a steady rate.

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

/// Number of clients. With the interval below, they send about 80 requests per second in total.
const CLIENTS: u64 = 8;
const REQUEST_INTERVAL: Duration = Duration::from_millis(100);

/// Results that the clients have observed since the start of the demo.
#[derive(Debug, Default)]
pub(super) struct LoadCounters {
    /// Responses with a 2xx status.
    pub(super) succeeded: AtomicU64,
    /// Other responses of the app, and broken connections.
    pub(super) failed: AtomicU64,
    /// Responses that the sidecar generated, by their `x-outrigger-reason` header.
    pub(super) rejected: AtomicU64,
    /// Duration of the last request, in microseconds.
    pub(super) last_micros: AtomicU64,
}

/// A running load, which ends when it is dropped.
#[derive(Debug)]
pub(super) struct DemoLoad {
    pub(super) counters: Arc<LoadCounters>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

impl DemoLoad {
    pub(super) fn start(address: SocketAddr) -> Self {
        let counters = Arc::new(LoadCounters::default());
        let clients = (0..CLIENTS)
            .map(|_| tokio::spawn(run_client(address, counters.clone())))
            .collect();
        Self { counters, clients }
    }
}

impl Drop for DemoLoad {
    fn drop(&mut self) {
        self.clients.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

async fn run_client(address: SocketAddr, counters: Arc<LoadCounters>) {
    let mut connection: Option<TcpStream> = None;
    loop {
        let began = clock::now();
        let response = send_request(&mut connection, address).await;
        let micros = clock::now().saturating_duration_since(began).as_micros();
        counters
            .last_micros
            .store(u64::try_from(micros).unwrap_or(u64::MAX), Ordering::Relaxed);
        let count = match response.as_deref() {
            Some(head) if head.contains("x-outrigger-reason") => &counters.rejected,
            Some(head) if head.starts_with("HTTP/1.1 2") => &counters.succeeded,
            _ => {
                connection = None;
                &counters.failed
            }
        };
        count.fetch_add(1, Ordering::Relaxed);
        clock::sleep(REQUEST_INTERVAL).await;
    }
}

/// Sends one request and returns the whole response, or `None` if the connection broke.
///
/// It reads until the body has the length that the head announces.
async fn send_request(connection: &mut Option<TcpStream>, address: SocketAddr) -> Option<String> {
    if connection.is_none() {
        *connection = TcpStream::connect(address).await.ok();
    }
    let stream = connection.as_mut()?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: demo\r\n\r\n")
        .await
        .ok()?;
    let mut response = Vec::new();
    loop {
        let count = stream
            .read_buf(&mut response)
            .await
            .ok()
            .filter(|count| *count > 0)?;
        debug_assert!(count > 0, "the end of the stream was filtered out");
        let text = String::from_utf8_lossy(&response).to_ascii_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"))
            .and_then(|length| length.trim().parse().ok())
            .unwrap_or(0);
        if body.len() >= length {
            return Some(String::from_utf8_lossy(&response).into_owned());
        }
    }
}
