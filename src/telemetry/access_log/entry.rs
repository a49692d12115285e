//! What the access log states about one request. The module does not format it.

use std::{net::IpAddr, time::Duration};

use crate::telemetry::reason::Reason;

/// Facts about a completed request that its log line states.
#[derive(Debug)]
pub struct AccessLogEntry<'a> {
    /// Time at which the request ended, as text.
    pub timestamp: &'a str,
    /// Name of the listener that accepted the request.
    pub listener: &'a str,
    /// Name of the matched route; empty if none matched.
    pub route: &'a str,
    /// Name of the backend that was selected last; empty if none was selected.
    pub backend: &'a str,
    /// Address of the endpoint of the last attempt; empty without an attempt.
    pub endpoint: &'a str,
    /// IP address of the client; `None` leaves the field empty.
    pub client: Option<IpAddr>,
    /// HTTP method of the request.
    pub method: &'a str,
    /// Requested host, as the client sent it.
    pub host: &'a str,
    /// Path of the request, without its query.
    pub path: &'a str,
    /// HTTP status of the response to the client; 0 if no response was sent.
    pub status: u16,
    /// Status of a gRPC call; `None` omits the field.
    pub grpc_status: Option<u8>,
    /// Reason of a rejection or of an incomplete response; `None` leaves the field empty.
    pub reason: Option<Reason>,
    /// Breaker, rule, limit or endpoint that belongs to the reason; may be empty.
    pub detail: &'a str,
    /// Number of attempts. An attempt that replaces an unprocessed one is not counted.
    pub attempts: u32,
    /// Number of bytes of the request body that the client sent.
    pub bytes_received: u64,
    /// Number of bytes of the response body that were sent to the client.
    pub bytes_sent: u64,
    /// Duration from the request head to the end of the response.
    pub duration: Duration,
    /// Identifier of the request, which the decision log also states.
    pub request_id: &'a str,
    /// Value of the client's `traceparent` header; empty if there is none.
    pub traceparent: &'a str,
}
