//! Matches requests to route rules, in the precedence order of the Gateway API.
//!
//! The order is applied once, when the rules are sorted. The first rule that matches decides.
//! The criteria, in descending priority:
//!
//! 1. Host name: an exact name, then a longer wildcard before a shorter one, then none.
//! 2. Path: an exact path, then the longest prefix, then the longest regular expression, then a
//!    rule for every path.
//! 3. Method: a rule with a method before a rule without one.
//! 4. Headers: the rule with the most header conditions.
//! 5. Name of the route, in alphabetical order, so that the order of the files does not matter.
//!
//! The compiler applies the last criterion. The module knows neither backends nor effective
//! policies.

pub mod route_table;

use std::cmp::Reverse;

use regex::Regex;

/// Host name condition of a rule; case is ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostnamePattern {
    /// The host equals this name.
    Exact(String),
    /// The host ends with this suffix, which begins with a dot. It is longer than the suffix.
    Wildcard(String),
}

/// Conditions of a rule on the request; all must match.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RouteMatchSpec {
    /// Condition on the path.
    pub path: PathMatchSpec,
    /// Required method; `None` matches every method.
    pub method: Option<String>,
    /// Conditions on headers, by lower-case name; all must match.
    pub headers: Vec<(String, HeaderValueSpec)>,
}

/// Condition on the path of a request.
#[derive(Debug, Clone)]
pub enum PathMatchSpec {
    /// The path equals this text.
    Exact(String),
    /// The first segments of the path equal this text, which has no trailing slash.
    Prefix(String),
    /// The regular expression matches the whole path.
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

/// Condition on the value of a header.
#[derive(Debug, Clone)]
pub enum HeaderValueSpec {
    /// The value equals this text.
    Exact(String),
    /// The regular expression matches the whole value.
    Regex(Regex),
}

impl PartialEq for HeaderValueSpec {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            (Self::Exact(_), Self::Regex(_)) | (Self::Regex(_), Self::Exact(_)) => false,
        }
    }
}

/// Parts of a request that rules are matched against.
pub struct RouteMatchInput<'a> {
    /// Host without its port, in any case.
    pub host: &'a str,
    /// Path without its query.
    pub path: &'a str,
    /// Method as received; it is compared with regard to case.
    pub method: &'a str,
    /// Function that returns the first value of a header by its lower-case name.
    pub header: &'a dyn Fn(&str) -> Option<&'a str>,
}

impl std::fmt::Debug for RouteMatchInput<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}{}", self.method, self.host, self.path)
    }
}

/// Rule that leads a request to a route. A route has one rule per host name and match.
#[derive(Debug, Clone)]
pub struct RouteRule {
    /// Condition on the host; `None` matches every host.
    pub hostname: Option<HostnamePattern>,
    /// Conditions on the rest of the request.
    pub request_match: RouteMatchSpec,
    /// Index of the route in the snapshot.
    pub route: usize,
}

impl HostnamePattern {
    /// Returns whether the host matches, without regard to case.
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
    /// Returns whether the path matches.
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
    /// Returns whether all conditions of the rule match the request.
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

    /// Returns the sort key of the rule; the rule with the smallest key has precedence.
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
