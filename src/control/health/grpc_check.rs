//! Checks the gRPC health service with one call of `grpc.health.v1.Health/Check`.
//!
//! The request holds one string and the response holds one number, so this module encodes them
//! itself instead of using a gRPC library. Only the status `SERVING` passes (grpc/grpc,
//! `doc/health-checking.md`). The module does not know thresholds or intervals.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, header};

use crate::{
    control::{http1_call::USER_AGENT, http2_call},
    transport::queued_stream::QueuedStream,
};

/// Maximum size in bytes of a response. A valid response is one message of a few bytes.
const MAX_RESPONSE_BYTES: usize = 1 << 10;

/// Value of `SERVING` in `HealthCheckResponse.ServingStatus`.
const SERVING: u8 = 1;

/// Sends a health check for `service` on a new connection. An empty name checks the process as
/// a whole.
///
/// # Errors
/// A message for an invalid request, a name of more than 125 bytes, or a failed call.
pub(in crate::control) async fn send_check(
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

/// Returns `Ok` if the response has the status `SERVING`.
///
/// # Errors
/// A message with the HTTP status, the gRPC status or the serving status that was received
/// instead.
pub(in crate::control) fn evaluate_response(
    response: &http2_call::Http2Response,
) -> Result<(), String> {
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
        None => Err("the response is not one of the health service".to_owned()),
    }
}

/// Fails if `headers` contain a `grpc-status` other than 0.
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

/// Encodes `HealthCheckRequest { string service = 1; }` with the gRPC prefix: one flag byte and
/// four bytes of length.
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

/// Decodes `HealthCheckResponse { ServingStatus status = 1; }`. An empty message has the value
/// 0, which is `UNKNOWN`.
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
