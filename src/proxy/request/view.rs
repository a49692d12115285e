//! A request as its client sent it: the head and the sender, apart from the stream that it arrived on.
//!
//! An attempt needs no more than this of a client. So an attempt can run while the client is watched elsewhere (a hedged
//! attempt), or after the client has closed its connection (a mirrored request).

use std::{net::IpAddr, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header};
use pingora::http::RequestHeader;

use crate::{
    policy::snapshot::ListenerSpec,
    proxy::{
        request::{client_ip, rejection::PSEUDONYM},
        wire::header_names::{ATTEMPT, IDEMPOTENCY_KEY, REQUEST_ID},
    },
};

/// A request that has passed this many proxies of this name is in a loop.
const MAX_HOPS: usize = 16;

/// The longest request identifier that is taken from a client, in bytes.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// The peer at the other end of a client's connection.
#[derive(Debug, Clone)]
pub(crate) struct ClientIdentity {
    pub(crate) address: IpAddr,
    /// Whether the connection uses TLS.
    pub(crate) is_secure: bool,
    /// The identity in the client's certificate, if it presented one.
    pub(crate) certificate_identity: Option<Arc<str>>,
}

/// The head of a request and its sender, without the body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestView<'a> {
    pub(crate) head: &'a RequestHeader,
    pub(crate) identity: &'a ClientIdentity,
    /// The listener on which the request arrived.
    pub(crate) listener: &'a ListenerSpec,
    /// Whether the client speaks HTTP/2.
    pub(crate) is_http2: bool,
    /// Whether the request is a gRPC call. gRPC needs HTTP/2.
    pub(crate) is_grpc: bool,
}

impl<'a> RequestView<'a> {
    /// Returns the value of a header if it is text.
    pub(crate) fn header_str(&self, name: &HeaderName) -> Option<&'a str> {
        self.head
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
    }

    /// Returns the client's address as far as the proxies in between are trusted.
    pub(crate) fn client_ip(&self) -> IpAddr {
        client_ip::resolve(
            self.identity.address,
            &self.head.headers,
            &self.listener.trusted_proxies,
        )
    }

    /// Returns the request identifier of the client, or a new random one.
    pub(crate) fn request_id(&self) -> HeaderValue {
        let client_id =
            self.head.headers.get(REQUEST_ID).filter(|id| {
                !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX && id.to_str().is_ok()
            });
        client_id.cloned().unwrap_or_else(|| {
            let id = format!("{:032x}", fastrand::u128(..));
            HeaderValue::from_maybe_shared(Bytes::from(id))
                .unwrap_or_else(|_| HeaderValue::from_static("none"))
        })
    }

    /// Whether repeating the request is harmless: by its method (RFC 9110 section 9.2.2) or its idempotency key.
    pub(crate) fn is_idempotent(&self) -> bool {
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

    /// Returns the number of the attempt that this request is for its sender, from 1.
    pub(crate) fn downstream_attempt(&self) -> u32 {
        self.header_str(&ATTEMPT)
            .and_then(|attempt| attempt.trim().parse().ok())
            .unwrap_or(1)
            .max(1)
    }

    /// Whether the request has passed this kind of proxy so often that it must be in a loop.
    pub(crate) fn is_looping(&self) -> bool {
        let hops = self
            .head
            .headers
            .get_all(header::VIA)
            .iter()
            .filter_map(|value| value.to_str().ok());
        hops.flat_map(|value| value.split(','))
            .filter(|hop| hop.trim().ends_with(PSEUDONYM))
            .count()
            >= MAX_HOPS
    }

    /// Returns the protocol that the client asks to upgrade to.
    ///
    /// `h2c` is never forwarded: the proxy could not read the response.
    pub(crate) fn requested_upgrade(&self) -> Option<&'a str> {
        if self.head.version != Version::HTTP_11
            || !has_connection_option(&self.head.headers, "upgrade")
        {
            return None;
        }
        self.header_str(&header::UPGRADE).filter(|protocol| {
            !protocol.is_empty()
                && !protocol
                    .split(',')
                    .any(|one| one.trim().eq_ignore_ascii_case("h2c"))
        })
    }
}

fn has_connection_option(headers: &HeaderMap, option: &str) -> bool {
    headers.get_all(header::CONNECTION).iter().any(|value| {
        value
            .to_str()
            .unwrap_or_default()
            .split(',')
            .any(|name| name.trim().eq_ignore_ascii_case(option))
    })
}
