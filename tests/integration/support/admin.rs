//! Requests to the admin server of a sidecar.

use std::net::SocketAddr;

use super::{Client, ReceivedResponse};

/// Sends one request without a body.
pub(crate) fn call_admin(address: SocketAddr, method: &str, path: &str) -> ReceivedResponse {
    Client::connect(address)
        .send(format!(
            "{method} {path} HTTP/1.1\r\nhost: admin\r\ncontent-length: 0\r\n\
             connection: close\r\n\r\n"
        ))
        .read_response()
}

/// Returns the value of a time series, or 0 if it does not exist. `series` is its name with its
/// labels, in the form of the metrics page.
pub(crate) fn metric(address: SocketAddr, series: &str) -> f64 {
    let text = call_admin(address, "GET", "/metrics").text();
    text.lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
        .unwrap_or(0.0)
}
