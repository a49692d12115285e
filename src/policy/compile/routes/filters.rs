//! Compiles the filters of a route: changes to requests and responses, redirects and mirrors.
//!
//! It rejects changes that would break the framing of a message. The filters are those of the
//! Gateway API.

use crate::{
    policy::{
        compile::compiler::Compiler,
        document::{
            Filter, FilterType, HeaderModifier, HttpHeader, PathMatchType, PathRewrite,
            PathRewriteType, Redirect, RouteEntry, UrlRewrite,
        },
        report::FieldLocation,
        snapshot::{FilterSpec, HeaderModifierSpec, MirrorSpec, PathRewriteSpec, RedirectSpec},
        units::Percent,
    },
    resilience::ratio::Ratio,
};

/// Headers that filters must not change, because the proxy uses them for the framing and
/// routing of messages.
const PROTECTED_HEADERS: &[&str] = &[
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "upgrade",
    "te",
    "trailer",
    "keep-alive",
    "proxy-connection",
];

/// Compiled filters of a route.
#[derive(Default)]
pub(super) struct CompiledFilters {
    pub(super) spec: FilterSpec,
    pub(super) redirect: Option<RedirectSpec>,
    pub(super) mirrors: Vec<MirrorSpec>,
}

impl<'a> Compiler<'a> {
    pub(super) fn compile_filters(
        &mut self,
        at: &FieldLocation<'_>,
        route: &RouteEntry,
    ) -> CompiledFilters {
        let mut filters = CompiledFilters::default();
        let has_prefix = !route.matches.is_empty()
            && route.matches.iter().all(|matches| {
                matches
                    .path
                    .as_ref()
                    .is_some_and(|path| path.kind == PathMatchType::PathPrefix)
            });
        for (index, filter) in route.filters.iter().enumerate() {
            let at = at.key("filters").index(index);
            self.check_filter_fields(&at, filter);
            let may_repeat = filter.kind == FilterType::RequestMirror;
            if !may_repeat
                && route.filters[..index]
                    .iter()
                    .any(|earlier| earlier.kind == filter.kind)
            {
                self.report
                    .error(
                        &at,
                        format!("a filter of type {} is given twice", filter.kind),
                    )
                    .hint("put all its changes into one");
            }
            if let Some(edits) = &filter.request_header_modifier {
                filters.spec.request_headers =
                    self.compile_header_modifier(&at.key("requestHeaderModifier"), edits);
            }
            if let Some(edits) = &filter.response_header_modifier {
                filters.spec.response_headers =
                    self.compile_header_modifier(&at.key("responseHeaderModifier"), edits);
            }
            if let Some(rewrite) = &filter.url_rewrite {
                let at = at.key("urlRewrite");
                self.compile_url_rewrite(&at, rewrite, has_prefix, &mut filters.spec);
            }
            if let Some(mirror) = &filter.request_mirror {
                let at = at.key("requestMirror").key("backendRef");
                let share = mirror.percent.map_or(Ratio::ONE, Percent::ratio);
                filters.mirrors.extend(
                    mirror
                        .backend_ref
                        .resolve(&at, &self.facts, &mut self.report)
                        .map(|backend| MirrorSpec { backend, share }),
                );
            }
            if let Some(redirect) = &filter.request_redirect {
                filters.redirect =
                    self.compile_redirect(&at.key("requestRedirect"), redirect, has_prefix);
            }
        }
        filters
    }

    fn compile_url_rewrite(
        &mut self,
        at: &FieldLocation<'_>,
        rewrite: &UrlRewrite,
        has_prefix: bool,
        filters: &mut FilterSpec,
    ) {
        if rewrite.hostname.as_ref().is_some_and(|host| {
            host.is_empty() || !host.bytes().all(|byte| byte.is_ascii_graphic())
        }) {
            self.report
                .error(&at.key("hostname"), "this is not a host")
                .hint("write a name, and a port where it is needed");
        }
        filters.host_rewrite.clone_from(&rewrite.hostname);
        filters.path_rewrite = rewrite
            .path
            .as_ref()
            .and_then(|path| self.compile_path_rewrite(&at.key("path"), path, has_prefix));
    }

    fn check_filter_fields(&mut self, at: &FieldLocation<'_>, filter: &Filter) {
        let fields = [
            (
                FilterType::RequestHeaderModifier,
                "requestHeaderModifier",
                filter.request_header_modifier.is_some(),
            ),
            (
                FilterType::ResponseHeaderModifier,
                "responseHeaderModifier",
                filter.response_header_modifier.is_some(),
            ),
            (
                FilterType::URLRewrite,
                "urlRewrite",
                filter.url_rewrite.is_some(),
            ),
            (
                FilterType::RequestRedirect,
                "requestRedirect",
                filter.request_redirect.is_some(),
            ),
            (
                FilterType::RequestMirror,
                "requestMirror",
                filter.request_mirror.is_some(),
            ),
        ];
        for (kind, name, is_given) in fields {
            if kind == filter.kind && !is_given {
                self.report
                    .error(at, format!("a filter of type {kind:?} needs `{name}`"))
                    .hint(format!("add `{name}:`"));
            }
            if kind != filter.kind && is_given {
                self.report
                    .error(
                        &at.key(name),
                        format!("a filter of type {} must not have `{name}`", filter.kind),
                    )
                    .hint("write one filter for each change");
            }
        }
    }

    fn compile_header_modifier(
        &mut self,
        at: &FieldLocation<'_>,
        written: &HeaderModifier,
    ) -> HeaderModifierSpec {
        let mut check = |key: &str, names: Vec<&str>| {
            for (index, name) in names.into_iter().enumerate() {
                let lower = name.to_ascii_lowercase();
                if PROTECTED_HEADERS.contains(&lower.as_str()) {
                    self.report
                        .error(
                            &at.key(key).index(index),
                            format!("the header `{name}` cannot be changed by a filter"),
                        )
                        .hint("the proxy writes it itself; `urlRewrite.hostname` changes the host");
                } else {
                    self.report
                        .parse_header_name(&at.key(key).index(index), name);
                }
            }
        };
        check(
            "remove",
            written.remove.iter().map(String::as_str).collect(),
        );
        check(
            "set",
            written.set.iter().map(|edit| edit.name.as_str()).collect(),
        );
        check(
            "add",
            written.add.iter().map(|edit| edit.name.as_str()).collect(),
        );
        for (key, edits) in [("set", &written.set), ("add", &written.add)] {
            for (index, edit) in edits.iter().enumerate() {
                if http::HeaderValue::from_str(&edit.value).is_err() {
                    self.report
                        .error(
                            &at.key(key).index(index).key("value"),
                            "this cannot be the value of a header",
                        )
                        .hint("a value is one line of visible characters");
                }
            }
        }
        // Values that do not parse were already reported.
        let pairs = |edits: &[HttpHeader]| {
            edits
                .iter()
                .filter_map(|edit| Some((edit.name.parse().ok()?, edit.value.parse().ok()?)))
                .collect()
        };
        HeaderModifierSpec {
            remove: written
                .remove
                .iter()
                .filter_map(|name| name.parse().ok())
                .collect(),
            set: pairs(&written.set),
            add: pairs(&written.add),
        }
    }

    fn compile_path_rewrite(
        &mut self,
        at: &FieldLocation<'_>,
        written: &PathRewrite,
        has_prefix: bool,
    ) -> Option<PathRewriteSpec> {
        let path = match (
            written.kind,
            &written.replace_full_path,
            &written.replace_prefix_match,
        ) {
            (PathRewriteType::ReplaceFullPath, Some(path), None) => {
                PathRewriteSpec::Full(path.clone())
            }
            (PathRewriteType::ReplacePrefixMatch, None, Some(prefix)) if has_prefix => {
                PathRewriteSpec::Prefix(prefix.trim_end_matches('/').to_owned())
            }
            (PathRewriteType::ReplacePrefixMatch, None, Some(_)) => {
                self.report
                    .error(at, "there is no prefix to replace")
                    .hint("every match of this route needs a path of type PathPrefix");
                return None;
            }
            _ => {
                let hint = "ReplaceFullPath has `replaceFullPath`, ReplacePrefixMatch has \
                            `replacePrefixMatch`";
                self.report
                    .error(at, "a rewrite must have only the field that its type names")
                    .hint(hint);
                return None;
            }
        };
        let (PathRewriteSpec::Full(text) | PathRewriteSpec::Prefix(text)) = &path;
        if !(text.is_empty() || text.starts_with('/'))
            || !text
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'#')
        {
            self.report
                .error(at, format!("`{text}` is not a path"))
                .hint("a path begins with `/`, and has no spaces and no `#`");
        }
        Some(path)
    }

    fn compile_redirect(
        &mut self,
        at: &FieldLocation<'_>,
        written: &Redirect,
        has_prefix: bool,
    ) -> Option<RedirectSpec> {
        let status = written.status_code.unwrap_or(302);
        if ![301, 302, 303, 307, 308].contains(&status) {
            self.report
                .error(&at.key("statusCode"), format!("{status} is not a redirect"))
                .hint("write 301, 302, 303, 307 or 308");
        }
        if written.hostname.as_ref().is_some_and(|host| {
            host.is_empty() || !host.bytes().all(|byte| byte.is_ascii_graphic())
        }) {
            self.report
                .error(&at.key("hostname"), "this is not a host")
                .hint("write a name, without scheme and path");
        }
        if written
            .scheme
            .as_ref()
            .is_some_and(|scheme| scheme != "http" && scheme != "https")
        {
            self.report
                .error(
                    &at.key("scheme"),
                    "the scheme of a redirect must be `http` or `https`",
                )
                .hint("write one of the two");
        }
        let path = match &written.path {
            Some(path) => Some(self.compile_path_rewrite(&at.key("path"), path, has_prefix)?),
            None => None,
        };
        Some(RedirectSpec {
            status,
            scheme: written.scheme.clone(),
            host: written.hostname.clone(),
            port: written.port,
            path,
        })
    }
}
