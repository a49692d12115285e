//! Which rule a request falls under.
//!
//! Gateway API's precedence, decided once when the rules are sorted: a host name that is written out before one with a
//! wildcard, a longer wildcard before a shorter; then an exact path, the longest prefix, a regular expression; then a method;
//! then the most headers; then the names of the routes by alphabet, so that the outcome never depends on the order of files.

use std::cmp::Reverse;

use regex::Regex;

/// A host name to compare with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostnamePattern {
    /// This one.
    Exact(String),
    /// Any that ends in this, which begins with a dot.
    Wildcard(String),
}

/// What a request must look like.
#[derive(Debug, Clone, Default)]
pub struct RouteMatchSpec {
    /// The path.
    pub path: PathMatchSpec,
    /// The method.
    pub method: Option<String>,
    /// Headers, all of which must match.
    pub headers: Vec<(String, HeaderValueSpec)>,
}

/// A path to compare with.
#[derive(Debug, Clone)]
pub enum PathMatchSpec {
    /// The same.
    Exact(String),
    /// The same in its first elements; without a slash at its end.
    Prefix(String),
    /// Matched as a whole.
    Regex(Regex),
}

impl PartialEq for PathMatchSpec {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(one), Self::Exact(other)) | (Self::Prefix(one), Self::Prefix(other)) => {
                one == other
            }
            (Self::Regex(one), Self::Regex(other)) => one.as_str() == other.as_str(),
            _ => false,
        }
    }
}

impl Default for PathMatchSpec {
    fn default() -> Self {
        Self::Prefix(String::new())
    }
}

/// A value to compare with.
#[derive(Debug, Clone)]
pub enum HeaderValueSpec {
    /// The same.
    Exact(String),
    /// Matched as a whole.
    Regex(Regex),
}

/// What of a request is looked at.
pub struct RouteMatchInput<'a> {
    /// The host, without its port; in any case.
    pub host: &'a str,
    /// The path, without its query.
    pub path: &'a str,
    /// The method.
    pub method: &'a str,
    /// The first value of a header, by its lower-case name.
    pub header: &'a dyn Fn(&str) -> Option<&'a str>,
}

impl std::fmt::Debug for RouteMatchInput<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}{}", self.method, self.host, self.path)
    }
}

/// One way into a route.
#[derive(Debug, Clone)]
pub struct RouteRule {
    /// The host name, or any.
    pub hostname: Option<HostnamePattern>,
    /// What a request must look like.
    pub request_match: RouteMatchSpec,
    /// The index of the route.
    pub route: usize,
}

impl HostnamePattern {
    /// Whether the host is meant.
    #[must_use]
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => host.eq_ignore_ascii_case(name),
            Self::Wildcard(suffix) => {
                host.len() > suffix.len()
                    && host.is_char_boundary(host.len() - suffix.len())
                    && host[host.len() - suffix.len()..].eq_ignore_ascii_case(suffix)
            }
        }
    }
}

impl PathMatchSpec {
    /// Whether the path is meant.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == exact,
            Self::Prefix(prefix) => path
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            Self::Regex(regex) => regex.is_match(path),
        }
    }
}

impl HeaderValueSpec {
    fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(exact) => value == exact,
            Self::Regex(regex) => regex.is_match(value),
        }
    }
}

impl RouteRule {
    /// Whether the request falls under the rule.
    #[must_use]
    pub fn matches(&self, request: &RouteMatchInput<'_>) -> bool {
        self.hostname
            .as_ref()
            .is_none_or(|hostname| hostname.matches(request.host))
            && self.request_match.path.matches(request.path)
            && self
                .request_match
                .method
                .as_ref()
                .is_none_or(|method| method == request.method)
            && self.request_match.headers.iter().all(|(name, wanted)| {
                (request.header)(name).is_some_and(|value| wanted.matches(value))
            })
    }

    /// What rules are sorted by; the first that matches wins.
    #[must_use]
    pub fn precedence(&self) -> impl Ord + use<> {
        let host = match &self.hostname {
            Some(HostnamePattern::Exact(_)) => (0, Reverse(0)),
            Some(HostnamePattern::Wildcard(suffix)) => (1, Reverse(suffix.len())),
            None => (2, Reverse(0)),
        };
        let path = match &self.request_match.path {
            PathMatchSpec::Exact(_) => (0, Reverse(0)),
            PathMatchSpec::Prefix(prefix) if !prefix.is_empty() => (1, Reverse(prefix.len())),
            PathMatchSpec::Regex(regex) => (2, Reverse(regex.as_str().len())),
            PathMatchSpec::Prefix(_) => (3, Reverse(0)),
        };
        (
            host,
            path,
            self.request_match.method.is_none(),
            Reverse(self.request_match.headers.len()),
        )
    }
}

#[cfg(test)]
mod tests;
