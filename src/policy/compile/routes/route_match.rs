//! Compiles the match conditions of a route: host names, paths, methods and headers.

use crate::policy::{
    compile::compiler::Compiler,
    document::{HeaderMatchType, RouteEntry, RouteMatch},
    matching::{HeaderValueSpec, HostnamePattern, PathMatchSpec, RouteMatchSpec, RouteRule},
    path_match,
    report::FieldLocation,
};

impl<'a> Compiler<'a> {
    /// Compiles one rule for each pair of host name and match; no condition means any request.
    pub(super) fn compile_rules(
        &mut self,
        at: &FieldLocation<'_>,
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

    fn compile_hostname(&mut self, at: &FieldLocation<'_>, name: &str) -> Option<HostnamePattern> {
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
            self.report
                .error(at, format!("`{name}` is not a host name"))
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
        at: &FieldLocation<'_>,
        written: &RouteMatch,
    ) -> Option<RouteMatchSpec> {
        let path = match &written.path {
            None => PathMatchSpec::default(),
            Some(path) => path.compile(&at.key("path"), &mut self.report)?,
        };
        let mut headers = Vec::new();
        for (index, header) in written.headers.iter().enumerate() {
            let at = at.key("headers").index(index);
            let value = match header.kind {
                HeaderMatchType::Exact => HeaderValueSpec::Exact(header.value.clone()),
                HeaderMatchType::RegularExpression => HeaderValueSpec::Regex(
                    path_match::compile_regex(&header.value, &at.key("value"), &mut self.report)?,
                ),
            };
            self.report.parse_header_name(&at.key("name"), &header.name);
            headers.push((header.name.to_ascii_lowercase(), value));
        }
        if let Some(method) = &written.method {
            self.report.parse_method(&at.key("method"), method);
        }
        Some(RouteMatchSpec {
            path,
            method: written.method.clone(),
            headers,
        })
    }
}
