//! A real `nginx` that forwards everything to a backend. If it is not installed, the tests that
//! need it are skipped, with a message on the terminal.

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
};

use super::{TempDirectory, eventually, start_on_free_port};

/// Running nginx, killed on drop.
pub(crate) struct Nginx {
    child: Child,
    pub(crate) address: SocketAddr,
    _directory: TempDirectory,
}

impl Nginx {
    /// Starts nginx in front of a backend, if it is installed. Invalid field names are not dropped,
    /// and request bodies are streamed.
    pub(crate) fn start(backend: SocketAddr) -> Option<Self> {
        start_on_free_port(|address| Self::start_at(address, backend))
    }

    fn start_at(address: SocketAddr, backend: SocketAddr) -> Option<Self> {
        let directory = TempDirectory::new();
        let path = directory.path().display();
        let temporary_paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {path}/{kind};"))
            .concat();
        let configuration = format!(
            "daemon off; master_process off; pid {path}/pid; error_log {path}/log crit; events {{}}
             http {{
                 access_log off; {temporary_paths}
                 ignore_invalid_headers off; underscores_in_headers on; merge_slashes off;
                 client_header_timeout 1s; client_body_timeout 1s;
                 server {{
                     listen {address};
                     location / {{
                         proxy_pass http://{backend}; proxy_http_version 1.1;
                         proxy_set_header Host $http_host; proxy_set_header Connection \"\";
                         proxy_request_buffering off;
                     }}
                 }}
             }}"
        );
        directory.write("nginx.conf", &configuration);
        let started = Command::new("nginx")
            .args(["-e", "/dev/null", "-p"])
            .arg(directory.path())
            .arg("-c")
            .arg(directory.path().join("nginx.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut child) = started else {
            // The test runner does not capture a direct write to standard error.
            _ = writeln!(
                std::io::stderr(),
                "SKIPPED: nginx is not installed; run scripts/clients first"
            );
            return None;
        };
        let mut has_exited = false;
        eventually("nginx accepts connections or exits", || {
            has_exited = child.try_wait().unwrap().is_some();
            has_exited || TcpStream::connect(address).is_ok()
        });
        (!has_exited).then_some(Self {
            child,
            address,
            _directory: directory,
        })
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
