//! What was asked: the head of a request and who sent it, apart from the session that it came in by.
//!
//! An attempt needs no more than this of a client. So it can be made while the client is watched elsewhere (a hedge), or when it may be
//! gone already (a mirrored copy).

use std::net::IpAddr;

use http::{HeaderName, Method};
use pingora::http::RequestHeader;

use crate::proxy::{client::ClientIdentity, headers, source};

/// Says that repeating a request is harmless, because the app can tell that it has seen it (draft-ietf-httpapi-idempotency-key-header).
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// A request as its client sent it, without its body.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestView<'a> {
    pub(super) head: &'a RequestHeader,
    /// Who asks.
    pub(super) identity: &'a ClientIdentity,
    /// Proxies whose word about their clients is taken.
    pub(super) trusted_proxies: &'a [ipnet::IpNet],
    /// Whether it came in HTTP/2.
    pub(super) is_http2: bool,
    /// Whether it is a call of gRPC.
    pub(super) is_grpc: bool,
}

impl RequestView<'_> {
    /// The value of a header if it is text.
    pub(super) fn header_str(&self, name: &HeaderName) -> Option<&str> {
        self.head
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
    }

    /// Where it is from, as far as the proxies in between are trusted to tell it.
    pub(super) fn client_ip(&self) -> IpAddr {
        source::resolve(
            self.identity.address,
            &self.head.headers,
            self.trusted_proxies,
        )
    }

    /// Whether repeating it is harmless: by its method (RFC 9110 section 9.2.2), or because its client says that it can be told apart.
    pub(super) fn is_idempotent(&self) -> bool {
        let idempotent = [
            Method::GET,
            Method::HEAD,
            Method::OPTIONS,
            Method::TRACE,
            Method::PUT,
            Method::DELETE,
        ];
        idempotent.contains(&self.head.method) || self.head.headers.contains_key(IDEMPOTENCY_KEY)
    }

    /// Which attempt of its sender's it is, if that is a proxy of this kind: 1 is the first.
    pub(super) fn downstream_attempt(&self) -> u32 {
        self.header_str(&headers::ATTEMPT)
            .and_then(|attempt| attempt.trim().parse().ok())
            .unwrap_or(1)
            .max(1)
    }
}
