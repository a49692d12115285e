//! One HTTP/1 call of our own: a health check, or a webhook.

use std::{io, time::Duration};

use bytes::Bytes;
use pingora::{
    http::RequestHeader,
    protocols::{Stream as Transport, http::v1::client::HttpSession, l4::stream::Stream},
};
use tokio::net::{TcpStream, UnixStream};

use crate::{clock, policy::snapshot::Address};

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Its body, or the beginning of it.
    pub(super) body: Vec<u8>,
}

/// Connects, asks, and reads the head of the answer and at most `max_body` bytes of its body.
///
/// # Errors
/// What went wrong, in words: refused, timed out, reset, not HTTP.
pub(super) async fn call(address: &Address, request: Box<RequestHeader>, body: Bytes, max_body: usize, timeout: Duration) -> Result<Answer, String> {
    let exchange = async {
        let transport = connect(address).await.map_err(|error| format!("connect: {error}"))?;
        let mut session = HttpSession::new(transport);
        let failed = |error: Box<pingora::Error>| format!("{}: {}", error.etype.as_str(), error.context.as_ref().map_or("", |context| context.as_str()));
        session.write_request_header(request).await.map_err(failed)?;
        if !body.is_empty() {
            session.write_body(&body).await.map_err(failed)?;
        }
        session.finish_body().await.map_err(failed)?;
        let status = loop {
            session.read_response().await.map_err(failed)?;
            match session.get_status() {
                Some(status) if !status.is_informational() => break status.as_u16(),
                _ => {}
            }
        };
        let mut body = Vec::new();
        while body.len() < max_body
            && let Some(chunk) = session.read_body_bytes().await.map_err(failed)?
        {
            body.extend_from_slice(&chunk);
        }
        body.truncate(max_body);
        Ok(Answer { status, body })
    };
    clock::within(Some(timeout), exchange).await.map_err(|_| format!("no answer within {timeout:?}"))?
}

async fn connect(address: &Address) -> io::Result<Transport> {
    Ok(match address {
        Address::Tcp(address) => Box::new(Stream::from(TcpStream::connect(address).await?)),
        Address::Unix(path) => Box::new(Stream::from(UnixStream::connect(&**path).await?)),
    })
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
