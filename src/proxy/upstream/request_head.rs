//! The head of a request to a backend, before it is framed for HTTP/1 or HTTP/2.
//!
//! The module converts a finished head. It does not decide which fields the head has.

use std::borrow::Cow;

use http::{HeaderMap, Method, Uri, Version, header, uri::Scheme};

use crate::message::{framing::BodyFraming, headers::Headers};

/// Request head of one attempt, independent of the HTTP version of the connection.
pub(crate) struct UpstreamRequestHead<'e> {
    pub(crate) method: Method,
    /// Path and query that the backend receives. A filter may have rewritten them.
    pub(crate) path: Cow<'e, str>,
    pub(crate) headers: Headers,
    /// Framing that the fields state.
    pub(crate) framing: BodyFraming,
    /// Whether the connection to the backend uses TLS.
    pub(crate) is_secure: bool,
}

/// Error for a request target or a host that HTTP/2 cannot carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InvalidTarget;

impl UpstreamRequestHead<'_> {
    /// Returns the head as the bytes of HTTP/1.
    pub(crate) fn to_http1(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(1 << 10);
        out.extend_from_slice(self.method.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.path.as_bytes());
        out.extend_from_slice(b" HTTP/1.1\r\n");
        self.headers.write_http1(&mut out);
        out.extend_from_slice(b"\r\n");
        out
    }

    /// Converts the head into an HTTP/2 request head, which carries the host in `:authority`.
    ///
    /// # Errors
    /// If the host is absent, or the request target is invalid in HTTP/2.
    pub(crate) fn into_http2(self) -> Result<http::Request<()>, InvalidTarget> {
        let scheme = if self.is_secure {
            Scheme::HTTPS
        } else {
            Scheme::HTTP
        };
        let path = if self.path == "*" { "/" } else { &*self.path };
        let authority = self.headers.get(header::HOST).ok_or(InvalidTarget)?;
        let uri = Uri::builder()
            .scheme(scheme)
            .authority(authority)
            .path_and_query(path)
            .build()
            .map_err(|_| InvalidTarget)?;
        let mut headers = HeaderMap::from(&self.headers);
        headers.remove(header::HOST);
        let mut request = http::Request::new(());
        *request.method_mut() = self.method;
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = headers;
        Ok(request)
    }
}
