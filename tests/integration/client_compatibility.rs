//! Compatibility with other HTTP implementations: curl, Python's grpcio and httpx, Node's undici
//! and ws. `scripts/clients` installs them. A test without its client is skipped, with a message
//! on the terminal.

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::support::{
    ScriptedBackend, Sidecar,
    backend::ok_response,
    certificates::CertificateAuthority,
    eventually,
    policy::{PolicyBuilder, policy},
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn clients_directory() -> PathBuf {
    std::env::var_os("OUTRIGGER_CLIENTS")
        .map_or_else(|| Path::new(ROOT).join("target/clients"), PathBuf::from)
}

/// Returns the program if it is installed. Otherwise prints that a test is skipped, and why.
fn find_program(name: &str, path: &Path) -> Option<PathBuf> {
    let is_installed = if path.is_absolute() {
        path.exists()
    } else {
        Command::new(path).arg("--version").output().is_ok()
    };
    if is_installed {
        return Some(path.to_owned());
    }
    let missing = std::fs::read_to_string(clients_directory().join("missing")).unwrap_or_default();
    let reason = missing
        .lines()
        .find(|line| line.starts_with(name))
        .map_or("run scripts/clients first".to_owned(), str::to_owned);
    // The test runner does not capture a direct write to standard error.
    _ = writeln!(
        std::io::stderr(),
        "SKIPPED: a real client is missing: {name}: {reason}"
    );
    None
}

fn find_python() -> Option<PathBuf> {
    find_program("python", &clients_directory().join("python/bin/python"))
}

fn find_node() -> Option<PathBuf> {
    if clients_directory().join("node/node_modules/ws").exists() {
        find_program("node", Path::new("node"))
    } else {
        find_program("node", &clients_directory().join("node/node_modules/ws"))
    }
}

fn script_path(name: &str) -> PathBuf {
    let path = Path::new(ROOT).join("tests/clients").join(name);
    if path.extension().is_some_and(|extension| extension == "mjs") {
        // Node resolves modules from the directory of the script.
        let copy = clients_directory().join("node").join(name);
        std::fs::copy(&path, &copy).unwrap();
        return copy;
    }
    path
}

/// Server in another process. It exits at the end of its standard input.
struct ServerProcess {
    child: Child,
    address: SocketAddr,
}

impl ServerProcess {
    fn start(program: &Path, name: &str) -> Self {
        let mut child = Command::new(program)
            .arg(script_path(name))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut port)
            .unwrap();
        Self {
            child,
            address: format!("127.0.0.1:{}", port.trim()).parse().unwrap(),
        }
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        _ = self.child.wait();
    }
}

#[track_caller]
fn run_client_script(program: &Path, name: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .arg(script_path(name))
        .args(arguments)
        .output()
        .unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success() && stdout.trim_end().ends_with("fine"),
        "{name}: {stdout}\n{stderr}"
    );
}

/// Sidecar with a plain and a TLS listener, and an app that responds with the request.
struct EchoSidecar {
    authority: CertificateAuthority,
    plain_address: String,
    tls_address: String,
    sidecar: Sidecar,
    _backend: ScriptedBackend,
}

fn start_echo_sidecar() -> EchoSidecar {
    let backend = ScriptedBackend::responding_with(|request| {
        let line = request
            .request_line()
            .rsplit_once(' ')
            .unwrap()
            .0
            .to_owned();
        if line.starts_with("HEAD") {
            "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n".to_owned()
        } else {
            let body = String::from_utf8_lossy(&request.body);
            ok_response(&format!("{line} {body}"))
        }
    });
    let authority = CertificateAuthority::new();
    authority.write("server", &authority.issue(&["shop.test"]));
    let tls = authority.listener_tls("");
    let tls_listener = format!("direction: Inbound, address: \"127.0.0.1:0\", {tls}");
    let policy = PolicyBuilder::to_backend(&backend).routed_listener("secure", &tls_listener);
    let sidecar = Sidecar::start(&policy.build());
    EchoSidecar {
        plain_address: sidecar.address("inbound").to_string(),
        tls_address: sidecar.address("secure").to_string(),
        authority,
        sidecar,
        _backend: backend,
    }
}

#[test]
fn curl_works_over_every_http_version() {
    let Some(_) = find_program("curl", Path::new("curl")) else {
        return;
    };
    let echo = start_echo_sidecar();
    run_client_script(
        Path::new("sh"),
        "curl_client.sh",
        &[
            &echo.plain_address,
            &echo.tls_address,
            &echo.authority.path("ca.crt").display().to_string(),
            "shop.test",
        ],
    );
}

#[test]
fn httpx_works_over_http1_and_http2_with_and_without_tls() {
    let Some(python) = find_python() else { return };
    let echo = start_echo_sidecar();
    // httpx resolves names through the system, so the certificate must be for `localhost`.
    echo.authority
        .write("server", &echo.authority.issue(&["localhost"]));
    eventually("the new certificate is active", || {
        echo.sidecar
            .events()
            .iter()
            .any(|event| event.contains("uses new certificates"))
    });
    run_client_script(
        &python,
        "httpx_client.py",
        &[
            &echo.plain_address,
            &echo.tls_address,
            &echo.authority.path("ca.crt").display().to_string(),
            "localhost",
        ],
    );
}

#[test]
fn undici_works_over_http1_http2_and_websocket() {
    let Some(node) = find_node() else { return };
    let echo = start_echo_sidecar();
    let server = ServerProcess::start(&node, "ws_server.mjs");
    let websocket_sidecar = Sidecar::start(&policy(&[server.address], ""));
    let websocket_address = websocket_sidecar.address("inbound").to_string();
    run_client_script(
        &node,
        "undici_client.mjs",
        &[
            &echo.plain_address,
            &echo.tls_address,
            &echo.authority.path("ca.crt").display().to_string(),
            "shop.test",
            &websocket_address,
        ],
    );
}

#[test]
fn a_grpcio_client_calls_a_grpcio_server() {
    let Some(python) = find_python() else { return };
    let server = ServerProcess::start(&python, "grpc_server.py");
    let policy = PolicyBuilder::new(&[server.address]).backend_fields("protocol: GRPC");
    let sidecar = Sidecar::start(&policy.build());
    run_client_script(
        &python,
        "grpc_client.py",
        &[&sidecar.address("inbound").to_string()],
    );
}
