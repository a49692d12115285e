//! Compiles the match conditions of a route: host names, paths, methods and headers.

use regex::Regex;

use crate::policy::{
    compile::compiler::{Compiler, FieldLocation},
    document::{HeaderMatchType, PathMatch, PathMatchType, RouteEntry, RouteMatch},
    matching::{HeaderValueSpec, HostnamePattern, PathMatchSpec, RouteMatchSpec, RouteRule},
};

impl<'a> Compiler<'a> {
    /// Compiles one rule for each pair of host name and match; no condition means any request.
    pub(super) fn compile_rules(
        &mut self,
        at: &FieldLocation<'a>,
        route: &RouteEntry,
        index: usize,
    ) -> Vec<RouteRule> {
        let hostnames: Vec<Option<HostnamePattern>> = if route.hostnames.is_empty() {
            vec![None]
        } else {
            let names = route.hostnames.iter().enumerate();
            names
                .filter_map(|(index, name)| {
                    self.compile_hostname(&at.key("hostnames").index(index), name)
                })
                .map(Some)
                .collect()
        };
        let mut specs: Vec<RouteMatchSpec> = Vec::new();
        for (index, written) in route.matches.iter().enumerate() {
            specs.extend(self.compile_request_match(&at.key("matches").index(index), written));
        }
        if route.matches.is_empty() {
            specs.push(RouteMatchSpec::default());
        }
        let pairs = hostnames.iter().flat_map(|hostname| {
            specs
                .iter()
                .map(move |matches| (hostname.clone(), matches.clone()))
        });
        pairs
            .map(|(hostname, matches)| RouteRule {
                hostname,
                request_match: matches,
                route: index,
            })
            .collect()
    }

    fn compile_hostname(&mut self, at: &FieldLocation<'a>, name: &str) -> Option<HostnamePattern> {
        let (rest, is_wildcard) = name
            .strip_prefix("*.")
            .map_or((name, false), |rest| (rest, true));
        let is_label = |label: &str| {
            !label.is_empty()
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        };
        let is_address = rest.parse::<std::net::IpAddr>().is_ok();
        if !rest.split('.').all(is_label) && !is_address {
            self.error(at, format!("`{name}` is not a host name"))
                .hint("write it like `pay.shop` or `*.shop`, without a port");
            return None;
        }
        Some(if is_wildcard {
            HostnamePattern::Wildcard(format!(".{}", rest.to_ascii_lowercase()))
        } else {
            HostnamePattern::Exact(rest.to_ascii_lowercase())
        })
    }

    fn compile_request_match(
        &mut self,
        at: &FieldLocation<'a>,
        written: &RouteMatch,
    ) -> Option<RouteMatchSpec> {
        let path = match &written.path {
            None => PathMatchSpec::default(),
            Some(path) => self.compile_path_match(&at.key("path"), path)?,
        };
        let mut headers = Vec::new();
        for (index, header) in written.headers.iter().enumerate() {
            let at = at.key("headers").index(index);
            let value = match header.kind {
                HeaderMatchType::Exact => HeaderValueSpec::Exact(header.value.clone()),
                HeaderMatchType::RegularExpression => {
                    HeaderValueSpec::Regex(self.parse_regex(&at.key("value"), &header.value)?)
                }
            };
            self.parse_header_name(&at.key("name"), &header.name);
            headers.push((header.name.to_ascii_lowercase(), value));
        }
        if let Some(method) = &written.method {
            self.parse_method(&at.key("method"), method);
        }
        Some(RouteMatchSpec {
            path,
            method: written.method.clone(),
            headers,
        })
    }

    /// Compiles a path condition, of a route or of a rate limit.
    pub(in crate::policy::compile) fn compile_path_match(
        &mut self,
        at: &FieldLocation<'a>,
        path: &PathMatch,
    ) -> Option<PathMatchSpec> {
        let at = at.key("value");
        if path.kind != PathMatchType::RegularExpression && !path.value.starts_with('/') {
            self.error(&at, format!("`{}` is not a path", path.value))
                .hint("a path begins with `/`");
        }
        Some(match path.kind {
            PathMatchType::Exact => PathMatchSpec::Exact(path.value.clone()),
            PathMatchType::PathPrefix => {
                PathMatchSpec::Prefix(path.value.trim_end_matches('/').to_owned())
            }
            PathMatchType::RegularExpression => {
                PathMatchSpec::Regex(self.parse_regex(&at, &path.value)?)
            }
        })
    }

    /// Compiles a regular expression that must match the whole text.
    fn parse_regex(&mut self, at: &FieldLocation<'a>, written: &str) -> Option<Regex> {
        // The expression is compiled alone first, because an unbalanced parenthesis could close
        // the group around it.
        match Regex::new(written).and_then(|_| Regex::new(&format!("^(?:{written})$"))) {
            Ok(regex) => Some(regex),
            Err(error) => {
                let reason = error.to_string();
                let reason = reason
                    .lines()
                    .last()
                    .unwrap_or_default()
                    .trim_start_matches("error: ");
                self.error(
                    at,
                    format!("this regular expression does not compile: {reason}"),
                )
                .hint("the syntax is that of the Rust crate `regex`: RE2 without look-around");
                None
            }
        }
    }
}
