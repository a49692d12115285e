//! The rules of a listener, with an index that finds the rules that can match a request.
//!
//! A search visits the hosts, then the paths, in the order of precedence. Each step is a search
//! in a sorted map, so the cost hardly grows with the number of rules. A search never depends on
//! the length of the request beyond one pass over its host and its path. The module does not
//! define what matches; each rule that the index finds is checked completely.

use std::collections::BTreeMap;

use crate::policy::matching::{HostnamePattern, PathMatchSpec, RouteMatchInput, RouteRule};

/// Rules of one listener.
#[derive(Debug, Clone, Default)]
pub struct RouteTable {
    /// Rules in order of precedence.
    rules: Vec<RouteRule>,
    /// Rules for an exact host, by its name in lower case.
    exact_hosts: BTreeMap<Box<str>, PathIndex>,
    /// Rules for a wildcard host, by its suffix in lower case.
    wildcard_hosts: BTreeMap<Box<str>, PathIndex>,
    /// Length of the longest suffix of a wildcard host, in bytes.
    longest_suffix: usize,
    any_host: PathIndex,
}

/// Rules of one host, by their path. A list contains positions in [`RouteTable::rules`], in
/// ascending order.
#[derive(Debug, Clone, Default)]
struct PathIndex {
    exact: BTreeMap<Box<str>, Vec<usize>>,
    prefixes: PrefixNode,
    regexes: Vec<usize>,
    any: Vec<usize>,
}

/// Rules whose prefix ends at one segment of the path, and the longer prefixes.
#[derive(Debug, Clone, Default)]
struct PrefixNode {
    rules: Vec<usize>,
    children: BTreeMap<Box<str>, Self>,
}

impl RouteTable {
    /// Creates a table of rules that are sorted by precedence.
    #[must_use]
    pub fn new(rules: Vec<RouteRule>) -> Self {
        let mut table = Self::default();
        for (position, rule) in rules.iter().enumerate() {
            let index = match &rule.hostname {
                Some(HostnamePattern::Exact(name)) => {
                    let name = name.to_ascii_lowercase().into_boxed_str();
                    table.exact_hosts.entry(name).or_default()
                }
                Some(HostnamePattern::Wildcard(suffix)) => {
                    table.longest_suffix = table.longest_suffix.max(suffix.len());
                    let suffix = suffix.to_ascii_lowercase().into_boxed_str();
                    table.wildcard_hosts.entry(suffix).or_default()
                }
                None => &mut table.any_host,
            };
            index.insert(&rule.request_match.path, position);
        }
        table.rules = rules;
        table
    }

    /// Returns the rules in order of precedence.
    #[must_use]
    pub fn rules(&self) -> &[RouteRule] {
        &self.rules
    }

    /// Returns the rule with the highest precedence that matches a request.
    #[must_use]
    pub fn find(&self, request: &RouteMatchInput<'_>) -> Option<&RouteRule> {
        let find_in = |index: &PathIndex| self.find_in(index, request);
        if !self.exact_hosts.is_empty() || !self.wildcard_hosts.is_empty() {
            let host = lower_case(request.host);
            let exact = self.exact_hosts.get(&*host).and_then(find_in);
            if let Some(rule) = exact.or_else(|| self.find_wildcard(&host, request)) {
                return Some(rule);
            }
        }
        find_in(&self.any_host)
    }

    fn find_wildcard(&self, host: &str, request: &RouteMatchInput<'_>) -> Option<&RouteRule> {
        // Longer suffixes start further to the left, and precede shorter ones.
        let first = host.len().saturating_sub(self.longest_suffix);
        let dots = host.bytes().enumerate().skip(first);
        let suffixes = dots.filter(|(_, byte)| *byte == b'.');
        suffixes
            .filter_map(|(start, _)| self.wildcard_hosts.get(&host[start..]))
            .find_map(|index| self.find_in(index, request))
    }

    fn find_in(&self, index: &PathIndex, request: &RouteMatchInput<'_>) -> Option<&RouteRule> {
        let first = |positions: &[usize]| {
            let mut rules = positions.iter().map(|position| &self.rules[*position]);
            rules.find(|rule| rule.matches(request))
        };
        let exact = index.exact.get(request.path).and_then(|list| first(list));
        let segments = request.path.strip_prefix('/');
        exact
            .or_else(|| index.prefixes.find(segments?, &first))
            .or_else(|| first(&index.regexes))
            .or_else(|| first(&index.any))
    }
}

impl PathIndex {
    fn insert(&mut self, path: &PathMatchSpec, position: usize) {
        let list = match path {
            PathMatchSpec::Exact(exact) => self.exact.entry(exact.as_str().into()).or_default(),
            PathMatchSpec::Regex(_) => &mut self.regexes,
            PathMatchSpec::Prefix(prefix) => match prefix.strip_prefix('/') {
                Some(segments) => self.prefixes.list_of(segments),
                None => &mut self.any,
            },
        };
        list.push(position);
    }
}

impl PrefixNode {
    /// Returns the list of rules of a prefix, without its leading slash.
    fn list_of(&mut self, segments: &str) -> &mut Vec<usize> {
        let mut node = self;
        for segment in segments.split('/') {
            node = node.children.entry(segment.into()).or_default();
        }
        &mut node.rules
    }

    /// Returns what `first` finds in the list of the longest prefix of a path, without its
    /// leading slash.
    fn find<'t>(
        &self,
        path: &str,
        first: &impl Fn(&[usize]) -> Option<&'t RouteRule>,
    ) -> Option<&'t RouteRule> {
        let (segment, rest) = match path.split_once('/') {
            Some((segment, rest)) => (segment, Some(rest)),
            None => (path, None),
        };
        let child = self.children.get(segment)?;
        let longer = rest.and_then(|rest| child.find(rest, first));
        longer.or_else(|| first(&child.rules))
    }
}

/// Returns the text in lower case. Hosts are almost always in lower case already.
fn lower_case(text: &str) -> std::borrow::Cow<'_, str> {
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        text.to_ascii_lowercase().into()
    } else {
        text.into()
    }
}

#[cfg(test)]
mod tests;
