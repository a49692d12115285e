//! Heads of HTTP messages, independent of the HTTP version that carries them.
//!
//! The module does no I/O and parses no protocol. It does not decide which fields are forwarded.

pub mod framing;
pub mod headers;

use bytes::Bytes;
use http::{Method, StatusCode, Version};

use crate::message::{
    framing::{BodyFraming, InvalidFraming},
    headers::Headers,
};

/// Head of a request.
#[derive(Debug, Clone)]
pub struct RequestHead {
    /// Method, with its case.
    pub method: Method,
    /// Request target as received. HTTP/1 permits several forms; of HTTP/2, it is `:path`.
    pub target: Bytes,
    /// `:authority` of HTTP/2; `None` if it is missing, and in HTTP/1.
    pub authority: Option<Box<str>>,
    /// Version in which the request arrived.
    pub version: Version,
    /// Fields of the request.
    pub headers: Headers,
    /// Framing that the fields state.
    pub framing: Result<BodyFraming, InvalidFraming>,
}

/// Head of a response.
#[derive(Debug, Clone)]
pub struct ResponseHead {
    /// Status of the response, which can be interim.
    pub status: StatusCode,
    /// Version in which the response arrived.
    pub version: Version,
    /// Reason phrase; `None` if it is the one that belongs to the status.
    pub reason: Option<Box<str>>,
    /// Fields of the response.
    pub headers: Headers,
    /// Framing that the fields state.
    pub framing: Result<BodyFraming, InvalidFraming>,
}

impl RequestHead {
    /// Creates the head of a GET request without fields and without a target.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            method: Method::GET,
            target: Bytes::new(),
            authority: None,
            version: Version::HTTP_11,
            headers: Headers::default(),
            framing: Ok(BodyFraming::Unstated),
        }
    }
}

impl ResponseHead {
    /// Creates a head without fields.
    #[must_use]
    pub fn new(status: StatusCode) -> Self {
        Self {
            status,
            version: Version::HTTP_11,
            reason: None,
            headers: Headers::default(),
            framing: Ok(BodyFraming::Unstated),
        }
    }

    /// Returns the reason phrase; empty if the status has none.
    #[must_use]
    pub fn reason_phrase(&self) -> &str {
        let canonical = || self.status.canonical_reason().unwrap_or_default();
        self.reason.as_deref().unwrap_or_else(canonical)
    }
}

impl From<http::request::Parts> for RequestHead {
    /// Converts a head of HTTP/2.
    fn from(parts: http::request::Parts) -> Self {
        let authority = parts.uri.authority();
        let path = parts.uri.path_and_query();
        let headers = Headers::from(&parts.headers);
        Self {
            authority: authority.map(|authority| authority.as_str().into()),
            target: path.map_or_else(Bytes::new, |path| {
                Bytes::copy_from_slice(path.as_str().as_bytes())
            }),
            method: parts.method,
            version: parts.version,
            framing: BodyFraming::from_headers(&headers),
            headers,
        }
    }
}

impl From<http::response::Parts> for ResponseHead {
    /// Converts a head of HTTP/2, which has no reason phrase.
    fn from(parts: http::response::Parts) -> Self {
        let headers = Headers::from(&parts.headers);
        Self {
            status: parts.status,
            version: parts.version,
            reason: None,
            framing: BodyFraming::from_headers(&headers),
            headers,
        }
    }
}
