//! What does the whole sidecar cost, compared with a byte pump that does not parse HTTP?
//!
//! Run `cargo bench --bench overhead` on Linux. One run measures CPU per request, latency, memory
//! and startup time. The pump is the minimum cost of any process between two sockets.
//! `benches/README.md` compares the sidecar with other proxies.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark"
)]

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Role of this program when it starts itself as a child process.
const ROLE_VARIABLE: &str = "OVERHEAD_ROLE";
const BACKEND_VARIABLE: &str = "OVERHEAD_BACKEND";

const ROUNDS: usize = 3;
const LOAD_DURATION: Duration = Duration::from_secs(4);
const LATENCY_DURATION: Duration = Duration::from_secs(2);
const CONNECTIONS: usize = 64;
/// Each connection has two sockets in the pump, which fits into the usual limit of 1024 open files.
const IDLE_CONNECTIONS: usize = 400;
const REQUEST: &[u8] =
    b"GET /bench HTTP/1.1\r\nhost: bench.test\r\nuser-agent: overhead\r\naccept: */*\r\n\r\n";
const BODY_BYTES: usize = 128;

fn main() {
    match env::var(ROLE_VARIABLE).as_deref() {
        Ok("backend") => run_role(None),
        Ok("pump") => run_role(Some(env::var(BACKEND_VARIABLE).unwrap().parse().unwrap())),
        _ => measure(),
    }
}

/// Runs a server on one thread, which responds itself or copies bytes to and from a backend.
fn run_role(pump_to: Option<SocketAddr>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", socket.local_addr().unwrap());
        loop {
            let (client, _) = socket.accept().await.unwrap();
            client.set_nodelay(true).unwrap();
            tokio::spawn(async move {
                // The task ends when the client disconnects.
                _ = match pump_to {
                    Some(address) => copy_bytes(client, address).await,
                    None => serve_responses(client).await,
                };
            });
        }
    });
}

async fn copy_bytes(mut client: tokio::net::TcpStream, address: SocketAddr) -> std::io::Result<()> {
    let mut backend = tokio::net::TcpStream::connect(address).await?;
    backend.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut client, &mut backend)
        .await
        .map(drop)
}

async fn serve_responses(mut client: tokio::net::TcpStream) -> std::io::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let response = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {BODY_BYTES}\r\n\r\n{}",
        "x".repeat(BODY_BYTES)
    );
    let mut received = Vec::with_capacity(4096);
    while client.read_buf(&mut received).await? > 0 {
        if received.ends_with(b"\r\n\r\n") {
            received.clear();
            client.write_all(response.as_bytes()).await?;
        }
    }
    Ok(())
}

/// Process between the client and the backend, or the backend itself. It is killed on drop.
struct BenchProcess {
    child: Child,
    address: SocketAddr,
    startup_time: Duration,
}

impl BenchProcess {
    fn start_role(role: &str, backend: Option<SocketAddr>) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .env(ROLE_VARIABLE, role)
            .env(
                BACKEND_VARIABLE,
                backend
                    .map(|address| address.to_string())
                    .unwrap_or_default(),
            )
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        Self {
            child,
            address: line.trim().parse().unwrap(),
            startup_time: Duration::ZERO,
        }
    }

    fn start_sidecar(backend: SocketAddr, access_log: &str) -> Self {
        // Another process could bind the port first, which is unlikely on a machine for benchmarks.
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let policies = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/policies");
        let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
        command
            .args(["run", "--admin", "127.0.0.1:0", "--policies"])
            .arg(policies);
        command
            .env("OUTRIGGER_WORKERS", "1")
            .env("OUTRIGGER_INBOUND", address.to_string())
            .env("OUTRIGGER_APP", backend.to_string());
        command
            .env("BENCH_ACCESS_LOG", access_log)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let started_at = Instant::now();
        let child = command.spawn().unwrap();
        let mut process = Self {
            child,
            address,
            startup_time: Duration::ZERO,
        };
        while TcpStream::connect(address)
            .ok()
            .and_then(|mut stream| send_request(&mut stream))
            .is_none()
        {
            assert!(
                process.child.try_wait().unwrap().is_none(),
                "the sidecar did not start"
            );
            assert!(
                started_at.elapsed() < Duration::from_secs(10),
                "the sidecar does not respond"
            );
        }
        process.startup_time = started_at.elapsed();
        process
    }

    /// Returns the CPU time of the process, from clock ticks of 10 ms.
    fn cpu_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }

    fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for BenchProcess {
    fn drop(&mut self) {
        // The process may have exited already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Sends one request and reads its response. Returns `None` if the response is not as expected.
fn send_request(stream: &mut TcpStream) -> Option<()> {
    let mut response = [0; 2048];
    let mut filled = 0;
    stream.write_all(REQUEST).ok()?;
    loop {
        let count = stream
            .read(&mut response[filled..])
            .ok()
            .filter(|count| *count > 0)?;
        filled += count;
        let Some(head) = response[..filled]
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
        else {
            continue;
        };
        if !response.starts_with(b"HTTP/1.1 200") {
            return None;
        }
        if filled == head + 4 + BODY_BYTES {
            return Some(());
        }
    }
}

/// Measures the CPU time per request under load, in microseconds.
fn cpu_micros_per_request(process: &BenchProcess) -> f64 {
    let (completed, is_stopped) = (AtomicU64::new(0), AtomicBool::new(false));
    let before = process.cpu_time();
    thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(|| {
                let mut stream = TcpStream::connect(process.address).unwrap();
                stream.set_nodelay(true).unwrap();
                while !is_stopped.load(Ordering::Relaxed) {
                    send_request(&mut stream).expect("every request gets the expected response");
                    completed.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        thread::sleep(LOAD_DURATION);
        is_stopped.store(true, Ordering::Relaxed);
    });
    let used = process.cpu_time().checked_sub(before).unwrap();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let requests = completed.load(Ordering::Relaxed) as f64;
    used.as_secs_f64() * 1e6 / requests
}

/// Measures the median latency of one client, in microseconds.
fn median_latency_micros(address: SocketAddr) -> f64 {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    let started_at = Instant::now();
    let mut latencies = Vec::new();
    while started_at.elapsed() < LATENCY_DURATION {
        let sent_at = Instant::now();
        send_request(&mut stream).expect("every request gets the expected response");
        latencies.push(sent_at.elapsed());
    }
    latencies.sort_unstable();
    latencies[latencies.len() / 2].as_secs_f64() * 1e6
}

/// Measures the memory of an idle connection that has carried one request, in KiB.
fn idle_connection_kib(process: &BenchProcess) -> f64 {
    let before = process.resident_kib();
    let connections: Vec<TcpStream> = (0..IDLE_CONNECTIONS)
        .map(|_| {
            let mut stream = TcpStream::connect(process.address).unwrap();
            send_request(&mut stream).expect("every request gets the expected response");
            stream
        })
        .collect();
    let after = process.resident_kib();
    drop(connections);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let kib_per_connection = after.saturating_sub(before) as f64 / IDLE_CONNECTIONS as f64;
    kib_per_connection
}

fn measure() {
    let backend = BenchProcess::start_role("backend", None);
    println!(
        "{ROUNDS} rounds, {CONNECTIONS} connections, responses of {BODY_BYTES} bytes; \
         median (minimum to maximum)\n"
    );
    println!(
        "| | CPU us/request | p50 us, one client | RSS idle KiB | KiB per idle connection | \
         start ms |\n|---|---|---|---|---|---|"
    );
    let direct: Vec<f64> = (0..ROUNDS)
        .map(|_| median_latency_micros(backend.address))
        .collect();
    println!("| no proxy | | {} | | | |", summarize(direct));
    let mut rows: [(&str, [Vec<f64>; 5]); 3] = [
        "byte pump",
        "outrigger, access log off",
        "outrigger, access log on",
    ]
    .map(|name| (name, Default::default()));
    for round in 1..=ROUNDS {
        for (name, figures) in &mut rows {
            eprintln!("round {round}/{ROUNDS}: {name}");
            let process = match *name {
                "byte pump" => BenchProcess::start_role("pump", Some(backend.address)),
                "outrigger, access log on" => BenchProcess::start_sidecar(backend.address, "JSON"),
                _ => BenchProcess::start_sidecar(backend.address, "Off"),
            };
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let idle_kib = process.resident_kib() as f64;
            let (connection_kib, cpu_micros, latency_micros) = (
                idle_connection_kib(&process),
                cpu_micros_per_request(&process),
                median_latency_micros(process.address),
            );
            for (figure, value) in figures.iter_mut().zip([
                cpu_micros,
                latency_micros,
                idle_kib,
                connection_kib,
                process.startup_time.as_secs_f64() * 1e3,
            ]) {
                figure.push(value);
            }
        }
    }
    for (name, figures) in rows {
        println!("| {name} | {} |", figures.map(summarize).join(" | "));
    }
}

fn summarize(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    format!(
        "{:.1} ({:.1} to {:.1})",
        values[values.len() / 2],
        values[0],
        values[values.len() - 1]
    )
}
