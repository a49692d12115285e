//! The head of a request to a backend, before it is framed for HTTP/1 or HTTP/2.
//!
//! The module converts a finished head. It does not decide which fields the head has.

use std::borrow::Cow;

use http::{HeaderMap, Method, Uri, Version, header, uri::Scheme};
use pingora::http::RequestHeader;

/// Request head of one attempt, independent of the HTTP version of the connection.
pub(crate) struct RequestHead<'e> {
    pub(crate) method: Method,
    /// Request target exactly as the client sent it.
    pub(crate) uri: Uri,
    /// Path and query that the backend receives. A filter may have rewritten them.
    pub(crate) path: Cow<'e, str>,
    pub(crate) headers: HeaderMap,
    /// Whether the connection to the backend uses TLS.
    pub(crate) is_secure: bool,
}

impl RequestHead<'_> {
    /// Converts the head into an HTTP/1 request head.
    ///
    /// # Errors
    /// If the path is no valid request target.
    pub(crate) fn into_http1(self) -> pingora::Result<Box<RequestHeader>> {
        let (mut parts, ()) = http::Request::new(()).into_parts();
        parts.method = self.method;
        parts.uri = self.uri;
        parts.headers = self.headers;
        let mut head = Box::new(RequestHeader::from(parts));
        if head.raw_path() != self.path.as_bytes() {
            head.set_raw_path(self.path.as_bytes())?;
        }
        Ok(head)
    }

    /// Converts the head into an HTTP/2 request head, which carries the host in `:authority`.
    ///
    /// # Errors
    /// If the host is absent, or the request target is invalid in HTTP/2.
    pub(crate) fn into_http2(mut self) -> pingora::Result<http::Request<()>> {
        let authority = self
            .headers
            .remove(header::HOST)
            .ok_or_else(invalid_target)?;
        let scheme = if self.is_secure {
            Scheme::HTTPS
        } else {
            Scheme::HTTP
        };
        let path = if self.path == "*" { "/" } else { &*self.path };
        let uri = Uri::builder()
            .scheme(scheme)
            .authority(authority.as_bytes())
            .path_and_query(path)
            .build()
            .map_err(|_| invalid_target())?;
        let mut request = http::Request::new(());
        *request.method_mut() = self.method;
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = self.headers;
        Ok(request)
    }
}

fn invalid_target() -> pingora::BError {
    pingora::Error::explain(pingora::ErrorType::InvalidHTTPHeader, "a request target")
}
