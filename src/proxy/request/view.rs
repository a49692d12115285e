//! A request as its client sent it: the head and the sender, apart from its stream.
//!
//! An attempt needs only this part of a client. It can therefore run while another future
//! watches the client (a hedged attempt), or after the client has closed its connection (a
//! mirrored request). The module does not know the route or the body.

use std::{net::IpAddr, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, Version, header};

use crate::{
    message::{RequestHead, headers::as_text},
    policy::snapshot::ListenerSpec,
    proxy::{
        request::{client_ip, rejection::PSEUDONYM},
        wire::{
            header_names::{ATTEMPT, IDEMPOTENCY_KEY, REQUEST_ID},
            list_field::lists_token,
        },
    },
};

/// Number of proxies with this name in `via` from which a request counts as looping.
const MAX_HOPS: usize = 16;

/// Maximum length of a request identifier that is accepted from a client, in bytes.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Peer at the other end of a client's connection.
#[derive(Debug, Clone)]
pub(crate) struct ClientIdentity {
    pub(crate) address: IpAddr,
    /// The same address, as `x-forwarded-for` states it. It is formatted once per connection.
    pub(crate) address_value: HeaderValue,
    /// Whether the connection uses TLS.
    pub(crate) is_secure: bool,
    /// Identity in the client's certificate, if it presented one.
    pub(crate) certificate_identity: Option<Arc<str>>,
}

impl ClientIdentity {
    /// Creates the identity of a client at an address.
    pub(crate) fn new(
        address: IpAddr,
        is_secure: bool,
        certificate_identity: Option<Arc<str>>,
    ) -> Self {
        let text = address.to_canonical().to_string();
        Self {
            address,
            // An address is plain ASCII, so the conversion cannot fail.
            address_value: HeaderValue::try_from(text)
                .unwrap_or_else(|_| HeaderValue::from_static("unknown")),
            is_secure,
            certificate_identity,
        }
    }
}

/// Head of a request and its sender, without the body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestView<'a> {
    pub(crate) head: &'a RequestHead,
    pub(crate) identity: &'a ClientIdentity,
    /// Listener on which the request arrived.
    pub(crate) listener: &'a ListenerSpec,
    /// Whether the client speaks HTTP/2.
    pub(crate) is_http2: bool,
    /// Whether the request is a gRPC call. gRPC needs HTTP/2.
    pub(crate) is_grpc: bool,
}

impl<'a> RequestView<'a> {
    /// Returns the value of a header if it is text.
    pub(crate) fn header_str(&self, name: impl AsRef<str>) -> Option<&'a str> {
        self.head.headers.get_str(name)
    }

    /// Returns the client's address, from `x-forwarded-for` as far as its proxies are trusted.
    pub(crate) fn client_ip(&self) -> IpAddr {
        client_ip::resolve(
            self.identity.address,
            &self.head.headers,
            &self.listener.trusted_proxies,
        )
    }

    /// Returns the request identifier of the client, or a new random one.
    pub(crate) fn request_id(&self) -> HeaderValue {
        let client_id = self.header_str(REQUEST_ID);
        client_id
            .filter(|id| !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX)
            .and_then(|id| HeaderValue::from_str(id).ok())
            .unwrap_or_else(|| new_request_id(fastrand::u128(..)))
    }

    /// Returns whether the request can be repeated safely: by its method (RFC 9110 section
    /// 9.2.2) or its idempotency key.
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

    /// Returns the attempt number of this request at its sender, from 1. A missing or invalid
    /// value is 1.
    pub(crate) fn downstream_attempt(&self) -> u32 {
        self.header_str(ATTEMPT)
            .and_then(|attempt| attempt.trim().parse().ok())
            .unwrap_or(1)
            .max(1)
    }

    /// Returns whether the request has passed proxies with this name so often that it is in a
    /// loop.
    pub(crate) fn is_looping(&self) -> bool {
        let hops = self.head.headers.get_all(header::VIA).filter_map(as_text);
        hops.flat_map(|value| value.split(','))
            .filter(|hop| hop.trim().ends_with(PSEUDONYM))
            .count()
            >= MAX_HOPS
    }

    /// Returns the protocol that the client requests an upgrade to; `None` if it requests none.
    ///
    /// `h2c` is never forwarded, because the proxy could not parse the response.
    pub(crate) fn requested_upgrade(&self) -> Option<&'a str> {
        if self.head.version != Version::HTTP_11
            || !lists_token(&self.head.headers, &header::CONNECTION, "upgrade")
        {
            return None;
        }
        self.header_str(header::UPGRADE).filter(|protocol| {
            !protocol.is_empty()
                && !protocol
                    .split(',')
                    .any(|one| one.trim().eq_ignore_ascii_case("h2c"))
        })
    }
}

/// Returns a number as an identifier: 32 hexadecimal digits. `std::fmt` would cost ten times as
/// much.
fn new_request_id(number: u128) -> HeaderValue {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0_u8; 32];
    for (digits, byte) in text.chunks_exact_mut(2).zip(number.to_be_bytes()) {
        digits[0] = DIGITS[usize::from(byte >> 4)];
        digits[1] = DIGITS[usize::from(byte & 15)];
    }
    HeaderValue::from_maybe_shared(Bytes::copy_from_slice(&text))
        .unwrap_or_else(|_| HeaderValue::from_static("none"))
}
