//! Asking the health service of gRPC: one call of `grpc.health.v1.Health/Check`.
//!
//! The request is one message with one string, the answer one with one number; that is less than a library for it would be. What
//! passes is the status SERVING and nothing else (grpc/grpc, `doc/health-checking.md`).

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, header};

use crate::{
    control::{http1_call::USER_AGENT, http2_call},
    transport::queued_stream::QueuedStream,
};

/// An answer is one small message; more is none.
const MAX_RESPONSE_BYTES: usize = 1 << 10;

/// SERVING, of `HealthCheckResponse.ServingStatus`.
const SERVING: u8 = 1;

/// Asks on a new connection.
///
/// # Errors
/// What is wrong, in words.
pub(crate) async fn send_check(
    connection: QueuedStream,
    authority: &str,
    is_secure: bool,
    service: &str,
) -> Result<http2_call::Http2Response, String> {
    let scheme = if is_secure { "https" } else { "http" };
    let request = Request::post(format!(
        "{scheme}://{authority}/grpc.health.v1.Health/Check"
    ))
    .header(header::CONTENT_TYPE, "application/grpc")
    .header(header::TE, "trailers")
    .header(header::USER_AGENT, USER_AGENT)
    .body(())
    .map_err(|error| error.to_string())?;
    http2_call::send_request(
        connection,
        request,
        encode_request(service)?,
        MAX_RESPONSE_BYTES,
    )
    .await
}

/// Whether the service says that it serves.
///
/// # Errors
/// What it says else, in words.
pub(crate) fn evaluate_response(response: &http2_call::Http2Response) -> Result<(), String> {
    if response.status != 200 {
        return Err(format!("status {}", response.status));
    }
    check_grpc_status(&response.headers)?;
    check_grpc_status(&response.trailers)?;
    match decode_serving_status(&response.body) {
        Some(SERVING) => Ok(()),
        Some(2) => Err("NOT_SERVING".to_owned()),
        Some(3) => Err("SERVICE_UNKNOWN".to_owned()),
        Some(_) => Err("UNKNOWN".to_owned()),
        None => Err("the answer is not one of the health service".to_owned()),
    }
}

/// Fails if the call did.
fn check_grpc_status(headers: &HeaderMap) -> Result<(), String> {
    match headers
        .get("grpc-status")
        .map(|status| status.to_str().unwrap_or_default())
    {
        None | Some("0") => Ok(()),
        Some(status) => {
            let message = headers
                .get("grpc-message")
                .and_then(|message| message.to_str().ok())
                .unwrap_or_default();
            Err(format!("grpc status {status} {message}")
                .trim_end()
                .to_owned())
        }
    }
}

/// `HealthCheckRequest { string service = 1; }`, in the frame of gRPC: a flag and four bytes of length.
fn encode_request(service: &str) -> Result<Bytes, String> {
    let length = u8::try_from(service.len())
        .ok()
        .filter(|length| *length <= 125)
        .ok_or("the name of the service is too long")?;
    let mut message = BytesMut::with_capacity(7 + service.len());
    let has_name = length > 0;
    message.put_u8(0);
    message.put_u32(if has_name { u32::from(length) + 2 } else { 0 });
    if has_name {
        message.put_slice(&[0x0a, length]);
        message.put_slice(service.as_bytes());
    }
    Ok(message.freeze())
}

/// `HealthCheckResponse { ServingStatus status = 1; }`; an empty message is 0, which is UNKNOWN.
fn decode_serving_status(frame: &[u8]) -> Option<u8> {
    let (head, message) = frame.split_at_checked(5)?;
    let length = usize::try_from(u32::from_be_bytes(head[1..].try_into().ok()?)).ok()?;
    if head[0] != 0 || message.len() != length {
        return None;
    }
    match message {
        [] => Some(0),
        [0x08, status] if *status < 0x80 => Some(*status),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
