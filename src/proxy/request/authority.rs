//! Whom a request is for: one host, whatever form the target has.
//!
//! A target in absolute form (`GET http://pay.shop/v1 HTTP/1.1`) names the host itself; pingora has checked that it does not
//! contradict the Host header. Towards a backend a target is always in origin form.

use http::header;

use crate::{
    proxy::request::{rejection::Rejection, view::RequestView},
    telemetry::reason::Reason,
};

/// Whom a request is for, and what it asks.
#[derive(Clone)]
pub(crate) struct RequestTarget {
    /// The host as it was written, with its port if there is one; empty if an HTTP/1.0 client named none.
    pub(crate) authority: String,
    /// Path and query, in origin form.
    pub(crate) path_and_query: String,
}

impl RequestTarget {
    /// The host without its port.
    pub(crate) fn host(&self) -> &str {
        match self.authority.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => self.authority.split(':').next().unwrap_or_default(),
        }
    }

    /// The path without its query.
    pub(crate) fn path(&self) -> &str {
        self.path_and_query.split('?').next().unwrap_or_default()
    }

    /// The query with its question mark, if there is one.
    pub(crate) fn query(&self) -> &str {
        &self.path_and_query[self.path().len()..]
    }
}

/// Finds out whom a request is for.
pub(crate) fn parse(request: &RequestView<'_>) -> Result<RequestTarget, Rejection> {
    let bad_request = || Rejection::from_reason(Reason::BadRequest);
    if request.is_http2 {
        return parse_http2(request);
    }
    let raw_target = std::str::from_utf8(request.head.raw_path()).map_err(|_| bad_request())?;
    let host = match request.head.headers.get(header::HOST) {
        Some(host) => host.to_str().map_err(|_| bad_request())?,
        None => "",
    };
    let (authority, path_and_query) = if raw_target.starts_with('/') || raw_target == "*" {
        (host, raw_target)
    } else {
        let (scheme, rest) = raw_target.split_once("://").ok_or_else(bad_request)?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return Err(bad_request());
        }
        let authority_end = rest.find(['/', '?']).unwrap_or(rest.len());
        (&rest[..authority_end], &rest[authority_end..])
    };
    let leading_slash = if path_and_query.is_empty() || path_and_query.starts_with('?') {
        "/"
    } else {
        ""
    };
    Ok(RequestTarget {
        authority: authority.to_owned(),
        path_and_query: [leading_slash, path_and_query].concat(),
    })
}

/// HTTP/2 names the host in the target; a Host beside it must say the same (RFC 9113 section 8.3.1).
fn parse_http2(request: &RequestView<'_>) -> Result<RequestTarget, Rejection> {
    let bad_request = || Rejection::from_reason(Reason::BadRequest);
    let head = request.head;
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let host = hosts
        .next()
        .map(|host| host.to_str().map_err(|_| bad_request()))
        .transpose()?;
    let authority = match (head.uri.authority().map(http::uri::Authority::as_str), host) {
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => {
            return Err(bad_request());
        }
        (Some(authority), _) => authority,
        (None, Some(host)) => host,
        (None, None) => return Err(bad_request()),
    };
    if hosts.next().is_some() || authority.is_empty() || authority.contains('@') {
        return Err(bad_request());
    }
    let path = head
        .uri
        .path_and_query()
        .map_or("/", http::uri::PathAndQuery::as_str);
    let leading_slash = if path.starts_with('/') || path == "*" {
        ""
    } else {
        "/"
    };
    Ok(RequestTarget {
        authority: authority.to_owned(),
        path_and_query: [leading_slash, path].concat(),
    })
}
