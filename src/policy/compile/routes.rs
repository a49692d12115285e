//! Routes: what they match, where they lead, and under which policy.

mod filters;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use regex::Regex;

use super::{
    At, Compiler, Scope,
    backends::MadeBackend,
    sections::{as_backend_policy, scope_of},
};
use crate::policy::{
    document::{Direction, HeaderMatchType, PathMatch, PathMatchType, Route, RouteMatch, Sections},
    matching::{Hostname, MatchSpec, PathSpec, Rule, ValueSpec},
    snapshot::{
        ActionSpec, Destination, FallbackTo, FilterSpec, ListenerSpec, MirrorSpec, Origin,
        PolicySpec, RateLimitSpec, RouteSpec,
    },
};
use crate::resilience::Mode;

/// What routes refer to.
pub(super) struct Tables<'t, 'a> {
    pub(super) listeners: &'t [(At<'a>, ListenerSpec)],
    pub(super) backends: &'t [(At<'a>, MadeBackend<'a>)],
    pub(super) policies: &'t HashMap<&'a str, Scope<'a, 'a>>,
    pub(super) defaults: Option<&'t Scope<'a, 'a>>,
}

impl<'a> Compiler<'a> {
    pub(super) fn routes(&mut self, tables: &Tables<'_, 'a>) -> (Vec<RouteSpec>, Vec<Vec<Rule>>) {
        self.check_backend_policies(tables);
        let mut seen = HashMap::new();
        let mut routes: Vec<RouteSpec> = Vec::new();
        let mut rules: Vec<Vec<Rule>> = vec![Vec::new(); tables.listeners.len()];
        for (at, route) in self.each("routes", |document| document.spec.routes.as_slice()) {
            self.check_name(&at.key("name"), "route", &route.name, &mut seen);
            let listeners = self.route_listeners(&at.key("listeners"), route, tables);
            let of_route = self.rules(&at, route, routes.len());
            for listener in &listeners {
                rules[*listener].extend(of_route.iter().cloned());
            }
            let direction = listeners.first().map_or(Direction::Inbound, |index| {
                tables.listeners[*index].1.direction
            });
            routes.push(self.route(&at, route, direction, tables));
        }
        for (index, (at, listener)) in tables.listeners.iter().enumerate() {
            if rules[index].is_empty() {
                self.warning(
                    at,
                    format!(
                        "no route takes the requests of the listener `{}`",
                        listener.name
                    ),
                )
                .hint("every request there is answered with 404");
            }
            rules[index].sort_by_key(|rule| {
                (
                    rule.precedence(),
                    routes.get(rule.route).map(|route| route.name.clone()),
                )
            });
        }
        (routes, rules)
    }

    fn check_backend_policies(&mut self, tables: &Tables<'_, 'a>) {
        for (at, backend) in tables.backends {
            if let Some(name) = backend
                .policy
                .filter(|name| !tables.policies.contains_key(*name))
            {
                self.unknown_reference(
                    &at.key("policy"),
                    "policy",
                    name,
                    tables.policies.keys().copied(),
                );
            }
        }
    }

    fn route_listeners(
        &mut self,
        at: &At<'a>,
        route: &Route,
        tables: &Tables<'_, 'a>,
    ) -> Vec<usize> {
        let mut found: Vec<usize> = Vec::new();
        if route.listeners.is_empty() {
            self.error(at, "a route without listeners gets no requests")
                .hint("name at least one, like `listeners: [inbound]`");
        }
        for (index, name) in route.listeners.iter().enumerate() {
            match tables
                .listeners
                .iter()
                .position(|(_, listener)| *listener.name == **name)
            {
                Some(position) => found.push(position),
                None => self.unknown_reference(
                    &at.index(index),
                    "listener",
                    name,
                    tables.listeners.iter().map(|(_, listener)| &*listener.name),
                ),
            }
        }
        let directions: HashSet<Direction> = found
            .iter()
            .map(|index| tables.listeners[*index].1.direction)
            .collect();
        if directions.len() > 1 {
            self.error(at, "a route is inbound or outbound, not both")
                .hint("write one route for each direction");
        }
        found
    }

    fn route(
        &mut self,
        at: &At<'a>,
        route: &'a Route,
        direction: Direction,
        tables: &Tables<'_, 'a>,
    ) -> RouteSpec {
        let own: Sections = route.sections();
        let filters = self.filters(at, route);
        let name: Arc<str> = Arc::from(route.name.as_str());
        let named = route.policy.as_deref().and_then(|policy| {
            let found = tables.policies.get(policy);
            if found.is_none() {
                self.unknown_reference(
                    &at.key("policy"),
                    "policy",
                    policy,
                    tables.policies.keys().copied(),
                );
            }
            found
        });
        let own_scope = scope_of(Origin::Route(name.clone()), at.clone(), &own);
        self.check_unused(std::iter::once(&own_scope));
        let mut destinations = Vec::new();
        let mut backend_policies = Vec::new();
        for (index, reference) in route.backend_refs.iter().enumerate() {
            let reference_at = at.key("backendRefs").index(index);
            let Some(backend) = tables
                .backends
                .iter()
                .position(|(_, backend)| *backend.spec.name == *reference.name)
            else {
                let known = tables
                    .backends
                    .iter()
                    .map(|(_, backend)| &*backend.spec.name);
                self.unknown_reference(
                    &reference_at.key("name"),
                    "backend",
                    &reference.name,
                    known,
                );
                continue;
            };
            let of_backend = tables.backends[backend].1.policy.and_then(|name| {
                tables
                    .policies
                    .get(name)
                    .map(|scope| as_backend_policy(name, scope))
            });
            let scopes: Vec<&Scope<'_, 'a>> = [
                Some(&own_scope),
                named,
                of_backend.as_ref(),
                tables.defaults,
            ]
            .into_iter()
            .flatten()
            .collect();
            let policy = self.policy(&reference.name, &scopes);
            self.check_two_sided_retry(&reference_at, direction, &policy);
            backend_policies.push((tables.backends[backend].1.policy, of_backend));
            destinations.push(Destination {
                backend,
                weight: reference.weight.unwrap_or(1),
                policy: Arc::new(policy),
            });
        }
        let fault = route
            .fault_injection
            .as_ref()
            .and_then(|written| self.fault(&at.key("faultInjection"), written));
        let aside = self.aside_destinations(&destinations, &filters.mirrors, tables);
        let rate_limits = self.route_rate_limits(
            at,
            &[Some(&own_scope), named],
            &backend_policies,
            tables.defaults,
        );
        let has_other_filters =
            filters.spec != FilterSpec::default() || !filters.mirrors.is_empty();
        let action = match filters.redirect {
            Some(redirect) => {
                if !route.backend_refs.is_empty() {
                    self.error(&at.key("backendRefs"), "a redirect goes to no backend")
                        .hint("take `backendRefs` or the redirect out");
                }
                if !own.is_empty()
                    || route.fault_injection.is_some()
                    || route.policy.is_some()
                    || has_other_filters
                {
                    self.error(
                        at,
                        "a redirect is answered at once, so nothing else of a route would act",
                    )
                    .hint("take the other sections, the policy and the other filters out");
                }
                ActionSpec::Redirect(redirect)
            }
            None => {
                if route.backend_refs.is_empty() {
                    self.error(at, "a route leads somewhere")
                        .hint("add `backendRefs: [{name: app}]`, or a RequestRedirect filter");
                }
                if !destinations.is_empty()
                    && destinations
                        .iter()
                        .all(|destination| destination.weight == 0)
                {
                    self.error(
                        &at.key("backendRefs"),
                        "all weights are zero, so nothing could be chosen",
                    )
                    .hint("give at least one backend a weight");
                }
                ActionSpec::Forward(destinations)
            }
        };
        let can_identify = route.listeners.iter().any(|name| {
            tables.listeners.iter().any(|(_, listener)| {
                *listener.name == **name
                    && listener
                        .tls
                        .as_ref()
                        .is_some_and(|tls| tls.client_ca.is_some())
            })
        });
        let allowed = self.allowed(&at.key("allow"), route.allow.as_ref(), can_identify);
        RouteSpec {
            name,
            direction,
            filters: filters.spec,
            allowed,
            action,
            rate_limits,
            fault,
            mirrors: filters.mirrors,
            aside,
        }
    }

    /// The backends of fallbacks and mirrors, under their own policies, each once. They come from one set of names that were checked.
    fn aside_destinations(
        &mut self,
        destinations: &[Destination],
        mirrors: &[MirrorSpec],
        tables: &Tables<'_, 'a>,
    ) -> Vec<Destination> {
        let of_fallbacks = destinations.iter().filter_map(|destination| {
            match &destination.policy.fallback.as_ref()?.to {
                FallbackTo::Backend(name) => Some(name.clone()),
                FallbackTo::Response { .. } => None,
            }
        });
        let mut aside: Vec<Destination> = Vec::new();
        for name in of_fallbacks.chain(mirrors.iter().map(|mirror| mirror.backend.clone())) {
            let Some(backend) = tables
                .backends
                .iter()
                .position(|(_, backend)| backend.spec.name == name)
            else {
                continue;
            };
            if aside.iter().any(|known| known.backend == backend) {
                continue;
            }
            let of_backend = tables.backends[backend].1.policy.and_then(|name| {
                tables
                    .policies
                    .get(name)
                    .map(|scope| as_backend_policy(name, scope))
            });
            let scopes: Vec<&Scope<'_, 'a>> = [of_backend.as_ref(), tables.defaults]
                .into_iter()
                .flatten()
                .collect();
            let is_quiet = std::mem::replace(&mut self.is_quiet, true);
            aside.push(Destination {
                backend,
                weight: 1,
                policy: Arc::new(self.policy(&name, &scopes)),
            });
            self.is_quiet = is_quiet;
        }
        aside
    }

    /// Rate limits are of the route, whichever of its backends a request goes to; so its backends may bring them only together.
    fn route_rate_limits(
        &mut self,
        at: &At<'a>,
        of_route: &[Option<&Scope<'_, 'a>>],
        of_backends: &[(Option<&'a str>, Option<Scope<'a, 'a>>)],
        defaults: Option<&Scope<'_, 'a>>,
    ) -> RateLimitSpec {
        let first = of_backends.first().and_then(|(_, scope)| scope.as_ref());
        let is_mixed = of_backends.windows(2).any(|pair| pair[0].0 != pair[1].0);
        let is_limited = of_backends.iter().any(|(_, scope)| {
            scope
                .as_ref()
                .is_some_and(|scope| scope.sections.rate_limit.is_some())
        });
        let is_nearer = of_route
            .iter()
            .flatten()
            .any(|scope| scope.sections.rate_limit.is_some());
        if is_mixed && is_limited && !is_nearer {
            let hint = "a rate limit is asked before the backend is chosen; write it into the route or its policy";
            self.error(
                &at.key("backendRefs"),
                "the policies of these backends differ, and one has a `rateLimit`",
            )
            .hint(hint);
        }
        let scopes: Vec<&Scope<'_, 'a>> = of_route
            .iter()
            .copied()
            .chain([first, defaults])
            .flatten()
            .collect();
        self.rate_limits(&scopes)
    }

    fn check_two_sided_retry(&mut self, at: &At<'a>, direction: Direction, policy: &PolicySpec) {
        let retry = &policy.retry;
        if direction == Direction::Inbound
            && retry.mode == Mode::Enforce
            && retry.config.attempts > 0
        {
            self.warning(
                at,
                format!(
                    "retries towards the app (from {}) multiply with those of its callers",
                    retry.origin
                ),
            )
            .hint("retry on one side of a hop only: write `retry: {mode: Off}` into the route");
        }
    }

    fn rules(&mut self, at: &At<'a>, route: &Route, index: usize) -> Vec<Rule> {
        let hostnames: Vec<Option<Hostname>> = if route.hostnames.is_empty() {
            vec![None]
        } else {
            let names = route.hostnames.iter().enumerate();
            names
                .filter_map(|(index, name)| self.hostname(&at.key("hostnames").index(index), name))
                .map(Some)
                .collect()
        };
        let mut specs: Vec<MatchSpec> = Vec::new();
        for (index, written) in route.matches.iter().enumerate() {
            specs.extend(self.request_match(&at.key("matches").index(index), written));
        }
        if route.matches.is_empty() {
            specs.push(MatchSpec::default());
        }
        let pairs = hostnames.iter().flat_map(|hostname| {
            specs
                .iter()
                .map(move |matches| (hostname.clone(), matches.clone()))
        });
        pairs
            .map(|(hostname, matches)| Rule {
                hostname,
                matches,
                route: index,
            })
            .collect()
    }

    fn hostname(&mut self, at: &At<'a>, name: &str) -> Option<Hostname> {
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
            Hostname::Wildcard(format!(".{}", rest.to_ascii_lowercase()))
        } else {
            Hostname::Exact(rest.to_ascii_lowercase())
        })
    }

    fn request_match(&mut self, at: &At<'a>, written: &RouteMatch) -> Option<MatchSpec> {
        let path = match &written.path {
            None => PathSpec::default(),
            Some(path) => self.path(&at.key("path"), path)?,
        };
        let mut headers = Vec::new();
        for (index, header) in written.headers.iter().enumerate() {
            let at = at.key("headers").index(index);
            let value = match header.kind {
                HeaderMatchType::Exact => ValueSpec::Exact(header.value.clone()),
                HeaderMatchType::RegularExpression => {
                    ValueSpec::Regex(self.regex(&at.key("value"), &header.value)?)
                }
            };
            self.header_name(&at.key("name"), &header.name);
            headers.push((header.name.to_ascii_lowercase(), value));
        }
        if let Some(method) = &written.method {
            self.method(&at.key("method"), method);
        }
        Some(MatchSpec {
            path,
            method: written.method.clone(),
            headers,
        })
    }

    pub(super) fn path(&mut self, at: &At<'a>, path: &PathMatch) -> Option<PathSpec> {
        let at = at.key("value");
        if path.kind != PathMatchType::RegularExpression && !path.value.starts_with('/') {
            self.error(&at, format!("`{}` is not a path", path.value))
                .hint("a path begins with `/`");
        }
        Some(match path.kind {
            PathMatchType::Exact => PathSpec::Exact(path.value.clone()),
            PathMatchType::PathPrefix => {
                PathSpec::Prefix(path.value.trim_end_matches('/').to_owned())
            }
            PathMatchType::RegularExpression => PathSpec::Regex(self.regex(&at, &path.value)?),
        })
    }

    /// A regular expression that matches as a whole.
    fn regex(&mut self, at: &At<'a>, written: &str) -> Option<Regex> {
        // By itself first: a lone bracket could close the group around it.
        match Regex::new(written).and_then(|_| Regex::new(&format!("^(?:{written})$"))) {
            Ok(regex) => Some(regex),
            Err(error) => {
                let why = error.to_string();
                let why = why
                    .lines()
                    .last()
                    .unwrap_or_default()
                    .trim_start_matches("error: ");
                self.error(
                    at,
                    format!("this regular expression does not compile: {why}"),
                )
                .hint("the syntax is that of the Rust crate `regex`: RE2 without look-around");
                None
            }
        }
    }
}
