//! Parses the target of a request: one host and one path, whatever form the target has.
//!
//! A target in absolute form (`GET http://pay.shop/v1 HTTP/1.1`) names the host itself. The Host
//! header must not contradict it. Targets sent to a backend are always in origin form, and a
//! request without a path has the path `/`. The module does not know whether a route matches the
//! target.

use http::{Method, header};

use crate::{
    message::headers::as_text,
    proxy::request::{host_port, rejection::Rejection, view::RequestView},
    telemetry::reason::Reason,
};

/// Host and path of a request.
#[derive(Clone)]
pub(crate) struct RequestTarget {
    /// Host as received, with its port if there is one; empty if an HTTP/1.0 client sent none.
    pub(crate) authority: String,
    /// Path and query in origin form, or `*`.
    pub(crate) path_and_query: String,
    path_length: usize,
}

impl RequestTarget {
    /// Returns the host without its port. An IPv6 address has no brackets.
    pub(crate) fn host(&self) -> &str {
        match self.authority.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => self.authority.split(':').next().unwrap_or_default(),
        }
    }

    /// Creates a target. A path that lacks its slash receives it.
    fn new(authority: &str, path_and_query: &str) -> Self {
        let leading_slash = match path_and_query.as_bytes() {
            [b'/', ..] | b"*" => "",
            _ => "/",
        };
        let path_and_query = [leading_slash, path_and_query].concat();
        let path_length = path_and_query.bytes().position(|byte| byte == b'?');
        Self {
            authority: authority.to_owned(),
            path_length: path_length.unwrap_or(path_and_query.len()),
            path_and_query,
        }
    }

    /// Returns the path without its query.
    pub(crate) fn path(&self) -> &str {
        &self.path_and_query[..self.path_length]
    }

    /// Returns the query with its question mark; empty if there is none.
    pub(crate) fn query(&self) -> &str {
        &self.path_and_query[self.path_length..]
    }
}

/// Parses the target of a request.
///
/// # Errors
/// A rejection with [`Reason::BadRequest`] if the target or the Host header is malformed, or
/// the scheme is neither `http` nor `https`.
pub(crate) fn parse(request: &RequestView<'_>) -> Result<RequestTarget, Rejection> {
    let bad_request = || Rejection::from_reason(Reason::BadRequest);
    if request.is_http2 {
        return parse_http2(request);
    }
    let raw_target = std::str::from_utf8(&request.head.target).map_err(|_| bad_request())?;
    let host = match request.head.headers.get(header::HOST) {
        Some(host) => as_text(host).ok_or_else(bad_request)?,
        None => "",
    };
    let is_asterisk = raw_target == "*" && request.head.method == Method::OPTIONS;
    let (authority, path_and_query) = if raw_target.starts_with('/') || is_asterisk {
        (host, raw_target)
    } else {
        let (scheme, rest) = raw_target.split_once("://").ok_or_else(bad_request)?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return Err(bad_request());
        }
        let authority_end = rest.find(['/', '?']).unwrap_or(rest.len());
        let authority = &rest[..authority_end];
        if !host.is_empty() && !host_port::are_equal(authority, host, scheme) {
            return Err(bad_request());
        }
        (authority, &rest[authority_end..])
    };
    // Only an HTTP/1.0 request may have no host at all.
    let has_no_host = authority.is_empty() && !request.head.headers.contains_key(header::HOST);
    if !has_no_host && !host_port::is_valid(authority) {
        return Err(bad_request());
    }
    Ok(RequestTarget::new(authority, path_and_query))
}

/// Parses an HTTP/2 target, which contains the host. A Host header must equal it (RFC 9113
/// section 8.3.1).
///
/// # Errors
/// A rejection with [`Reason::BadRequest`] if the host is missing, ambiguous or malformed.
fn parse_http2(request: &RequestView<'_>) -> Result<RequestTarget, Rejection> {
    let bad_request = || Rejection::from_reason(Reason::BadRequest);
    let head = request.head;
    let mut hosts = head.headers.get_all(header::HOST);
    let host = hosts
        .next()
        .map(|host| as_text(host).ok_or_else(bad_request))
        .transpose()?;
    let authority = match (head.authority.as_deref(), host) {
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => {
            return Err(bad_request());
        }
        (Some(authority), _) => authority,
        (None, Some(host)) => host,
        (None, None) => return Err(bad_request()),
    };
    if hosts.next().is_some() || !host_port::is_valid(authority) {
        return Err(bad_request());
    }
    let path = std::str::from_utf8(&head.target).map_err(|_| bad_request())?;
    Ok(RequestTarget::new(authority, path))
}
