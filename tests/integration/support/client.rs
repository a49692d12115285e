//! A client that sends raw bytes, and reads responses by their framing.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
};

use super::TEST_TIMEOUT;

/// Client with one connection.
pub(crate) struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// Response as the client received it.
#[derive(Debug, Clone)]
pub(crate) struct ReceivedResponse {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    /// Whether the body ended as its framing requires.
    pub(crate) is_complete: bool,
}

impl ReceivedResponse {
    /// Returns the first value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers(name).first().copied()
    }

    pub(crate) fn headers(&self, name: &str) -> Vec<&str> {
        let fields = self
            .head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'));
        fields
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .collect()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn reason(&self) -> &str {
        self.header("x-outrigger-reason").unwrap_or_default()
    }
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.stream.write_all(bytes.as_ref()).unwrap();
        self
    }

    /// Sends bytes, and returns `false` if the peer has closed the connection.
    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    pub(crate) fn get(&mut self, path: &str) -> ReceivedResponse {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n"))
            .read_response()
    }

    pub(crate) fn post(&mut self, path: &str, body: &str) -> ReceivedResponse {
        self.send(format!(
            "POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ))
        .read_response()
    }

    /// Reads the final response to a request other than HEAD, and skips interim responses.
    #[track_caller]
    pub(crate) fn read_response(&mut self) -> ReceivedResponse {
        self.try_read_response().expect("the peer sends a response")
    }

    pub(crate) fn try_read_response(&mut self) -> Option<ReceivedResponse> {
        loop {
            let (status, head) = self.read_head()?;
            if !(100..200).contains(&status) || status == 101 {
                return Some(self.read_body(status, head, true));
            }
        }
    }

    /// Reads one head, and leaves the body in the buffer.
    pub(crate) fn read_head(&mut self) -> Option<(u16, String)> {
        let end = loop {
            if let Some(end) = find_bytes(&self.buffer, b"\r\n\r\n") {
                break end;
            }
            if !self.read_more() {
                return None;
            }
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        self.buffer.drain(..end + 4);
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, head))
    }

    pub(crate) fn read_body(
        &mut self,
        status: u16,
        head: String,
        has_body: bool,
    ) -> ReceivedResponse {
        let mut response = ReceivedResponse {
            status,
            head,
            body: Vec::new(),
            is_complete: true,
        };
        if !has_body || status == 204 || status == 304 || status < 200 {
            return response;
        }
        if response
            .header("transfer-encoding")
            .is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"))
        {
            (response.body, response.is_complete) = self.read_chunked_body();
        } else if let Some(length) = response
            .header("content-length")
            .and_then(|length| length.parse::<usize>().ok())
        {
            while self.buffer.len() < length && self.read_more() {}
            response.is_complete = self.buffer.len() >= length;
            response.body = self.buffer.drain(..length.min(self.buffer.len())).collect();
        } else {
            while self.read_more() {}
            response.body = std::mem::take(&mut self.buffer);
        }
        response
    }

    fn read_chunked_body(&mut self) -> (Vec<u8>, bool) {
        let mut body = Vec::new();
        loop {
            let Some(line) = find_bytes(&self.buffer, b"\r\n") else {
                if self.read_more() {
                    continue;
                }
                return (body, false);
            };
            let size =
                usize::from_str_radix(String::from_utf8_lossy(&self.buffer[..line]).trim(), 16)
                    .unwrap();
            while self.buffer.len() < line + 2 + size + 2 {
                if !self.read_more() {
                    return (body, false);
                }
            }
            body.extend_from_slice(&self.buffer[line + 2..line + 2 + size]);
            self.buffer.drain(..line + 2 + size + 2);
            if size == 0 {
                return (body, true);
            }
        }
    }

    /// Reads `count` bytes, or fewer if the connection ends.
    pub(crate) fn read_raw(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count && self.read_more() {}
        self.buffer.drain(..count.min(self.buffer.len())).collect()
    }

    /// Reads until the text arrives. Returns `false` if the peer closes or is silent before.
    pub(crate) fn reads_until(&mut self, text: &str) -> bool {
        while find_bytes(&self.buffer, text.as_bytes()).is_none() {
            if !self.read_more() {
                return false;
            }
        }
        true
    }

    /// Reads until the peer closes the connection.
    pub(crate) fn wait_for_close(&mut self) {
        while self.read_more() {}
    }

    pub(crate) fn shutdown_write(&mut self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Resets the connection.
    pub(crate) fn reset(self) {
        socket2::SockRef::from(&self.stream)
            .set_linger(Some(std::time::Duration::ZERO))
            .unwrap();
    }

    fn read_more(&mut self) -> bool {
        let mut chunk = [0; 16 << 10];
        match self.stream.read(&mut chunk) {
            Ok(0) => false,
            Ok(count) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                true
            }
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) =>
            {
                panic!("no bytes were received within {TEST_TIMEOUT:?}")
            }
            Err(_) => false,
        }
    }
}

pub(crate) fn find_bytes(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}
