//! One HTTP/1 call of our own: a health check, or a webhook.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use pingora::{
    http::RequestHeader,
    protocols::{http::v1::client::HttpSession, l4::stream::Stream},
};
use tokio::net::TcpStream;

use crate::clock;

/// Connects, asks, and reads the head of the answer: its status.
///
/// # Errors
/// What went wrong, in words: refused, timed out, reset, not HTTP.
pub(super) async fn call(address: SocketAddr, request: Box<RequestHeader>, body: Bytes, timeout: Duration) -> Result<u16, String> {
    let exchange = async {
        let tcp = TcpStream::connect(address).await.map_err(|error| format!("connect: {error}"))?;
        let mut session = HttpSession::new(Box::new(Stream::from(tcp)));
        let failed = |error: Box<pingora::Error>| format!("{}: {}", error.etype.as_str(), error.context.as_ref().map_or("", |context| context.as_str()));
        session.write_request_header(request).await.map_err(failed)?;
        if !body.is_empty() {
            session.write_body(&body).await.map_err(failed)?;
        }
        session.finish_body().await.map_err(failed)?;
        loop {
            session.read_response().await.map_err(failed)?;
            match session.get_status() {
                Some(status) if !status.is_informational() => return Ok(status.as_u16()),
                _ => {}
            }
        }
    };
    clock::within(Some(timeout), exchange).await.map_err(|_| format!("no answer within {timeout:?}"))?
}

/// The head of a call; `connection: close`, since there is no next one.
pub(super) fn head(method: &str, path: &str, host: &str, body: &Bytes) -> Result<Box<RequestHeader>, String> {
    let build = || -> pingora::Result<RequestHeader> {
        let mut head = RequestHeader::build(method, path.as_bytes(), Some(6))?;
        head.insert_header("host", host)?;
        head.insert_header("user-agent", concat!("outrigger/", env!("CARGO_PKG_VERSION")))?;
        head.insert_header("connection", "close")?;
        if !body.is_empty() {
            head.insert_header("content-type", "application/json")?;
            head.insert_header("content-length", body.len())?;
        }
        Ok(head)
    };
    build().map(Box::new).map_err(|error| error.to_string())
}
