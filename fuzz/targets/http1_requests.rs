//! The sidecar survives any bytes on a connection, and forwards only unambiguous requests.
//!
//! The whole sidecar runs in this process, with an app that parses strictly. Each request that the
//! app receives has one host and one framing. It has no bare CR, no folded line and no space before
//! a colon.
#![no_main]

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    num::NonZeroUsize,
    sync::LazyLock,
    thread,
    time::Duration,
};

use libfuzzer_sys::fuzz_target;
use outrigger::{app::App, settings::Settings, telemetry::access_log::AccessLogWriter};

static SIDECAR: LazyLock<(App, SocketAddr)> = LazyLock::new(|| {
    let app = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = app.local_addr().expect("an address");
    thread::spawn(move || {
        app.incoming().for_each(|stream| {
            drop(thread::spawn(move || {
                serve_strictly(stream.expect("a connection"))
            }))
        })
    });
    let directory = std::env::temp_dir().join(format!("outrigger-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    std::fs::write(directory.join("policy.yaml"), policy(address)).expect("a file");
    let mut settings = Settings::new(directory, "127.0.0.1:0".parse().expect("an address"));
    settings.worker_threads = NonZeroUsize::MIN;
    let app = App::start(settings, AccessLogWriter::disabled()).expect("the sidecar starts");
    let address = app
        .listener_address("in")
        .expect("the sidecar has a listener `in`");
    (app, address)
});

/// Returns the policy of the sidecar, with short timeouts.
fn policy(app_address: SocketAddr) -> String {
    format!(
        r#"
apiVersion: outrigger.dev/v1alpha1
kind: ResiliencePolicy
metadata: {{name: fuzz}}
spec:
  listeners:
    - name: in
      direction: Inbound
      address: "127.0.0.1:0"
      limits: {{headerTimeout: 50ms, idleTimeout: 100ms}}
  backends: [{{name: app, endpoints: ["{app_address}"]}}]
  routes:
    - name: in
      listeners: [in]
      backendRefs: [{{name: app}}]
      timeouts: {{request: 200ms, backendRequest: 200ms, streamIdle: 50ms}}
"#
    )
}

/// Checks each request of a connection, and responds to it.
fn serve_strictly(mut stream: TcpStream) {
    _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    let mut buffer = Vec::new();
    while let Some(head) = read_until(&mut stream, &mut buffer, b"\r\n\r\n") {
        let length = check_head(&head);
        match length {
            Some(length) => {
                while buffer.len() < length {
                    if !read_more(&mut stream, &mut buffer) {
                        return;
                    }
                }
                buffer.drain(..length);
            }
            None => loop {
                let Some(line) = read_until(&mut stream, &mut buffer, b"\r\n") else {
                    return;
                };
                let size = std::str::from_utf8(&line)
                    .ok()
                    .and_then(|size| usize::from_str_radix(size, 16).ok())
                    .expect("a chunk size is a hexadecimal number");
                if size == 0 {
                    if !skip_trailers(&mut stream, &mut buffer) {
                        return;
                    }
                    break;
                }
                while buffer.len() < size + 2 {
                    if !read_more(&mut stream, &mut buffer) {
                        return;
                    }
                }
                assert_eq!(
                    &buffer[size..size + 2],
                    b"\r\n",
                    "a chunk ends after its size"
                );
                buffer.drain(..size + 2);
            },
        }
        if stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .is_err()
        {
            return;
        }
    }
}

/// Reads the trailers to the empty line after them, and checks them. Returns whether they are
/// complete.
fn skip_trailers(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> bool {
    loop {
        let Some(line) = read_until(stream, buffer, b"\r\n") else {
            return false;
        };
        if line.is_empty() {
            return true;
        }
        let (name, _) = parse_field(&line);
        assert!(
            ![&b"content-length"[..], b"transfer-encoding", b"host"].contains(&name.as_slice()),
            "a trailer changes the message: {:?}",
            String::from_utf8_lossy(&line)
        );
    }
}

/// Returns the length of the body, or `None` if it is chunked.
///
/// Panics if two parsers could interpret the head differently.
fn check_head(head: &[u8]) -> Option<usize> {
    let (mut hosts, mut lengths, mut chunked) = (0, Vec::new(), 0);
    let mut lines = head
        .split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = lines.next().unwrap_or_default();
    assert_eq!(
        first.iter().filter(|byte| **byte == b' ').count(),
        2,
        "{:?}",
        String::from_utf8_lossy(first)
    );
    assert!(
        first.ends_with(b" HTTP/1.1") || first.ends_with(b" HTTP/1.0"),
        "{:?}",
        String::from_utf8_lossy(first)
    );
    for line in lines {
        let (name, value) = parse_field(line);
        match name.as_slice() {
            b"host" => hosts += 1,
            b"content-length" => lengths.push(value.to_vec()),
            b"transfer-encoding" => {
                assert!(
                    value.eq_ignore_ascii_case(b"chunked"),
                    "{:?}",
                    String::from_utf8_lossy(line)
                );
                chunked += 1;
            }
            _ => {}
        }
    }
    assert_eq!(hosts, 1, "a request has one host");
    assert!(
        chunked + lengths.len() <= 1,
        "a request has at most one framing header"
    );
    if chunked == 1 {
        return None;
    }
    Some(lengths.first().map_or(0, |length| {
        std::str::from_utf8(length)
            .ok()
            .and_then(|length| length.parse().ok())
            .expect("a length is a number")
    }))
}

/// Returns the name of a header field in lower case, and its value.
///
/// Panics if two parsers could interpret the line differently.
fn parse_field(line: &[u8]) -> (Vec<u8>, &[u8]) {
    assert!(
        !line.contains(&b'\r') && !line.contains(&0),
        "a control character in {:?}",
        String::from_utf8_lossy(line)
    );
    assert!(
        !line.starts_with(b" ") && !line.starts_with(b"\t"),
        "a folded line"
    );
    let colon = line
        .iter()
        .position(|byte| *byte == b':')
        .expect("a field has a colon");
    let (name, value) = (
        line[..colon].to_ascii_lowercase(),
        line[colon + 1..].trim_ascii(),
    );
    assert!(
        !name.is_empty() && name.iter().all(|byte| byte.is_ascii_graphic()),
        "an invalid field name in {:?}",
        String::from_utf8_lossy(line)
    );
    (name, value)
}

fn read_until(stream: &mut TcpStream, buffer: &mut Vec<u8>, delimiter: &[u8]) -> Option<Vec<u8>> {
    loop {
        if let Some(end) = buffer
            .windows(delimiter.len())
            .position(|window| window == delimiter)
        {
            let found = buffer[..end].to_vec();
            buffer.drain(..end + delimiter.len());
            return Some(found);
        }
        if !read_more(stream, buffer) {
            return None;
        }
    }
}

fn read_more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> bool {
    let mut chunk = [0; 4096];
    match stream.read(&mut chunk) {
        Ok(count @ 1..) => {
            buffer.extend_from_slice(&chunk[..count]);
            true
        }
        Ok(0) | Err(_) => false,
    }
}

fuzz_target!(|bytes: &[u8]| {
    let (_, address) = &*SIDECAR;
    let mut client = TcpStream::connect(address).expect("the sidecar accepts connections");
    _ = client.set_read_timeout(Some(Duration::from_secs(5)));
    if client.write_all(bytes).is_ok() {
        _ = client.shutdown(Shutdown::Write);
        let mut response = Vec::new();
        // The sidecar may reset the connection instead of responding.
        _ = client.read_to_end(&mut response);
    }
});
