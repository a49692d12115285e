//! Real clients, not ours: curl, Python's grpcio and httpx, Node's undici and ws. `scripts/clients` installs them; what could not be
//! installed is skipped, and said to the terminal whatever the test runner captures.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::support::{
    ScriptedBackend, Sidecar, backend::ok_response, certificates::CertificateAuthority,
    policy::policy,
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn clients_directory() -> PathBuf {
    std::env::var_os("OUTRIGGER_CLIENTS")
        .map_or_else(|| Path::new(ROOT).join("target/clients"), PathBuf::from)
}

/// The program, if it is there; else says loudly that a test is skipped, and why.
fn find_program(name: &str, path: &Path) -> Option<PathBuf> {
    let is_there = if path.is_absolute() {
        path.exists()
    } else {
        Command::new(path).arg("--version").output().is_ok()
    };
    if is_there {
        return Some(path.to_owned());
    }
    let missing = std::fs::read_to_string(clients_directory().join("missing")).unwrap_or_default();
    let why = missing
        .lines()
        .find(|line| line.starts_with(name))
        .map_or("run scripts/clients first".to_owned(), str::to_owned);
    // Written past the capture of the test runner.
    _ = writeln!(
        std::io::stderr(),
        "SKIPPED: a real client is missing: {name}: {why}"
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
        // Beside its modules, which are looked for from where a script is.
        let copy = clients_directory().join("node").join(name);
        std::fs::copy(&path, &copy).unwrap();
        return copy;
    }
    path
}

/// A server in another process, stopped by the end of its input.
struct ServerProcess(Child, String);

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
        Self(child, format!("127.0.0.1:{}", port.trim()))
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        _ = self.0.wait();
    }
}

#[track_caller]
fn run_client_script(program: &Path, name: &str, arguments: &[&str]) {
    let done = Command::new(program)
        .arg(script_path(name))
        .args(arguments)
        .output()
        .unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    assert!(
        done.status.success() && stdout.trim_end().ends_with("fine"),
        "{name}: {stdout}\n{stderr}"
    );
}

/// A sidecar with a plain and a TLS listener before an app that says what it was asked.
struct EchoSidecar {
    authority: CertificateAuthority,
    plain_address: String,
    tls_address: String,
    _sidecar: Sidecar,
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
        let body = if line.starts_with("HEAD") {
            String::new()
        } else {
            format!("{line} {}", String::from_utf8_lossy(&request.body))
        };
        if line.starts_with("HEAD") {
            "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n".to_owned()
        } else {
            ok_response(&body)
        }
    });
    let authority = CertificateAuthority::new();
    authority.write("server", &authority.issue(&["shop.test"]));
    let (cert, key) = (authority.path("server.crt"), authority.path("server.key"));
    let secure = format!(
        "    - {{name: secure, direction: Inbound, address: \"127.0.0.1:0\", tls: {{certFile: \"{}\", keyFile: \"{}\"}}}}\n  backends",
        cert.display(),
        key.display()
    );
    let text = policy(&[backend.address], "")
        .replace("  backends", &secure)
        .replace("listeners: [inbound]", "listeners: [inbound, secure]");
    let sidecar = Sidecar::start(&text);
    EchoSidecar {
        plain_address: sidecar.address("inbound").to_string(),
        tls_address: sidecar.address("secure").to_string(),
        authority,
        _sidecar: sidecar,
        _backend: backend,
    }
}

#[test]
fn curl_works_over_every_http_version() {
    let Some(_) = find_program("curl", Path::new("curl")) else {
        return;
    };
    let served = start_echo_sidecar();
    run_client_script(
        Path::new("sh"),
        "curl_client.sh",
        &[
            &served.plain_address,
            &served.tls_address,
            &served.authority.path("ca.crt").display().to_string(),
            "shop.test",
        ],
    );
}

#[test]
fn httpx_works_over_http1_and_http2_with_and_without_tls() {
    let Some(python) = find_python() else { return };
    let served = start_echo_sidecar();
    // httpx resolves names by the system; the certificate is for this one.
    served
        .authority
        .write("server", &served.authority.issue(&["localhost"]));
    let name = "localhost";
    crate::support::eventually("the new certificate is in force", || {
        served
            ._sidecar
            .events()
            .iter()
            .any(|event| event.contains("uses new certificates"))
    });
    run_client_script(
        &python,
        "httpx_client.py",
        &[
            &served.plain_address,
            &served.tls_address,
            &served.authority.path("ca.crt").display().to_string(),
            name,
        ],
    );
}

#[test]
fn undici_works_over_http1_http2_and_websocket() {
    let Some(node) = find_node() else { return };
    let served = start_echo_sidecar();
    let server = ServerProcess::start(&node, "ws_server.mjs");
    let websocket_sidecar = Sidecar::start(&policy(&[server.1.parse().unwrap()], ""));
    let websocket_address = websocket_sidecar.address("inbound").to_string();
    run_client_script(
        &node,
        "undici_client.mjs",
        &[
            &served.plain_address,
            &served.tls_address,
            &served.authority.path("ca.crt").display().to_string(),
            "shop.test",
            &websocket_address,
        ],
    );
}

#[test]
fn a_grpcio_client_calls_a_grpcio_server() {
    let Some(python) = find_python() else { return };
    let server = ServerProcess::start(&python, "grpc_server.py");
    let sidecar = Sidecar::start(
        &policy(&[server.1.parse().unwrap()], "")
            .replace("]}\n  routes", "], protocol: GRPC}\n  routes"),
    );
    run_client_script(
        &python,
        "grpc_client.py",
        &[&sidecar.address("inbound").to_string()],
    );
}
