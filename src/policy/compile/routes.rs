//! Compiles routes: their actions and effective policies.
//!
//! It resolves names to indices, inherits the policy of each pair of route and backend, and
//! sorts the rules of each listener. It rejects routes that could receive or send no request.

mod filters;
mod route_match;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use crate::{
    policy::{
        compile::{
            backends::CompiledBackend,
            compiler::{Compiler, FieldLocation, SectionScope},
            sections::as_backend_policy,
        },
        document::{Direction, RouteEntry, Sections},
        matching::RouteRule,
        snapshot::{
            Destination, FallbackAction, FilterSpec, ListenerSpec, MirrorSpec, PolicySpec,
            RateLimitSpec, RouteActionSpec, RouteSpec, SectionOrigin,
        },
    },
    resilience::Mode,
};

/// Compiled items that routes refer to by name.
pub(super) struct RouteReferences<'t, 'a> {
    pub(super) listeners: &'t [(FieldLocation<'a>, ListenerSpec)],
    pub(super) backends: &'t [(FieldLocation<'a>, CompiledBackend<'a>)],
    pub(super) policies: &'t HashMap<&'a str, SectionScope<'a, 'a>>,
    pub(super) defaults: Option<&'t SectionScope<'a, 'a>>,
}

impl<'a> RouteReferences<'_, 'a> {
    /// Returns the sections of the policy that a backend refers to, if it refers to one.
    fn backend_scope(&self, backend: usize) -> Option<SectionScope<'a, 'a>> {
        let name = self.backends[backend].1.policy_name?;
        let scope = self.policies.get(name)?;
        Some(as_backend_policy(name, scope))
    }
}

impl<'a> Compiler<'a> {
    pub(super) fn compile_routes(
        &mut self,
        references: &RouteReferences<'_, 'a>,
    ) -> (Vec<RouteSpec>, Vec<Vec<RouteRule>>) {
        self.check_backend_policies(references);
        let mut seen = HashMap::new();
        let mut routes: Vec<RouteSpec> = Vec::new();
        let mut rules: Vec<Vec<RouteRule>> = vec![Vec::new(); references.listeners.len()];
        for (at, route) in self.collect_items("routes", |document| document.spec.routes.as_slice())
        {
            self.check_name(&at.key("name"), "route", &route.name, &mut seen);
            let listeners = self.resolve_route_listeners(&at.key("listeners"), route, references);
            let route_rules = self.compile_rules(&at, route, routes.len());
            for listener in &listeners {
                rules[*listener].extend(route_rules.iter().cloned());
            }
            let direction = listeners.first().map_or(Direction::Inbound, |index| {
                references.listeners[*index].1.direction
            });
            routes.push(self.compile_route(&at, route, direction, references));
        }
        for (index, (at, listener)) in references.listeners.iter().enumerate() {
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

    fn check_backend_policies(&mut self, references: &RouteReferences<'_, 'a>) {
        for (at, backend) in references.backends {
            if let Some(name) = backend
                .policy_name
                .filter(|name| !references.policies.contains_key(*name))
            {
                self.report_unknown_reference(
                    &at.key("policy"),
                    "policy",
                    name,
                    references.policies.keys().copied(),
                );
            }
        }
    }

    fn resolve_route_listeners(
        &mut self,
        at: &FieldLocation<'a>,
        route: &RouteEntry,
        references: &RouteReferences<'_, 'a>,
    ) -> Vec<usize> {
        let mut found: Vec<usize> = Vec::new();
        if route.listeners.is_empty() {
            self.error(at, "a route without listeners gets no requests")
                .hint("name at least one, like `listeners: [inbound]`");
        }
        for (index, name) in route.listeners.iter().enumerate() {
            match references
                .listeners
                .iter()
                .position(|(_, listener)| *listener.name == **name)
            {
                Some(position) => found.push(position),
                None => self.report_unknown_reference(
                    &at.index(index),
                    "listener",
                    name,
                    references
                        .listeners
                        .iter()
                        .map(|(_, listener)| &*listener.name),
                ),
            }
        }
        let directions: HashSet<Direction> = found
            .iter()
            .map(|index| references.listeners[*index].1.direction)
            .collect();
        if directions.len() > 1 {
            self.error(at, "a route is inbound or outbound, not both")
                .hint("write one route for each direction");
        }
        found
    }

    fn compile_route(
        &mut self,
        at: &FieldLocation<'a>,
        route: &'a RouteEntry,
        direction: Direction,
        references: &RouteReferences<'_, 'a>,
    ) -> RouteSpec {
        let route_sections: Sections = route.sections();
        let filters = self.compile_filters(at, route);
        let name: Arc<str> = Arc::from(route.name.as_str());
        let named_policy_scope = route.policy.as_deref().and_then(|policy| {
            let found = references.policies.get(policy);
            if found.is_none() {
                self.report_unknown_reference(
                    &at.key("policy"),
                    "policy",
                    policy,
                    references.policies.keys().copied(),
                );
            }
            found
        });
        let route_scope = SectionScope {
            origin: SectionOrigin::Route(name.clone()),
            at: at.clone(),
            sections: &route_sections,
        };
        self.check_unused_sections(std::iter::once(&route_scope));
        let mut destinations = Vec::new();
        let mut backend_policies = Vec::new();
        for (index, reference) in route.backend_refs.iter().enumerate() {
            let reference_at = at.key("backendRefs").index(index);
            let Some(backend) = self.find_backend(
                &reference_at.key("name"),
                &reference.name,
                references.backends,
            ) else {
                continue;
            };
            let backend_scope = references.backend_scope(backend);
            let scopes: Vec<&SectionScope<'_, 'a>> = [
                Some(&route_scope),
                named_policy_scope,
                backend_scope.as_ref(),
                references.defaults,
            ]
            .into_iter()
            .flatten()
            .collect();
            let policy = self.compile_policy(&reference.name, &scopes);
            self.check_inbound_retries(&reference_at, direction, &policy);
            backend_policies.push((references.backends[backend].1.policy_name, backend_scope));
            destinations.push(Destination {
                backend,
                weight: reference.weight.unwrap_or(1),
                policy: Arc::new(policy),
            });
        }
        let fault = route
            .fault_injection
            .as_ref()
            .and_then(|written| self.compile_fault_injection(&at.key("faultInjection"), written));
        let auxiliary_backends =
            self.compile_auxiliary_backends(&destinations, &filters.mirrors, references);
        let rate_limits = self.compile_route_rate_limits(
            at,
            &[Some(&route_scope), named_policy_scope],
            &backend_policies,
            references.defaults,
        );
        let has_other_parts = !route_sections.is_empty()
            || route.fault_injection.is_some()
            || route.policy.is_some()
            || filters.spec != FilterSpec::default()
            || !filters.mirrors.is_empty();
        let action = match filters.redirect {
            Some(redirect) => {
                self.check_redirect(at, route, has_other_parts);
                RouteActionSpec::Redirect(redirect)
            }
            None => {
                self.check_destinations(at, route, &destinations);
                RouteActionSpec::Forward(destinations)
            }
        };
        let can_identify = can_identify_clients(route, references);
        let allowed =
            self.compile_allowed_identities(&at.key("allow"), route.allow.as_ref(), can_identify);
        RouteSpec {
            name,
            direction,
            filters: filters.spec,
            allowed_identities: allowed,
            action,
            rate_limits,
            fault_injection: fault,
            mirrors: filters.mirrors,
            auxiliary_backends,
        }
    }

    /// Reports the parts of a redirecting route that have no effect.
    fn check_redirect(
        &mut self,
        at: &FieldLocation<'a>,
        route: &RouteEntry,
        has_other_parts: bool,
    ) {
        if !route.backend_refs.is_empty() {
            self.error(&at.key("backendRefs"), "a redirect goes to no backend")
                .hint("take `backendRefs` or the redirect out");
        }
        if has_other_parts {
            self.error(
                at,
                "a redirect is answered at once, so nothing else of a route would act",
            )
            .hint("take the other sections, the policy and the other filters out");
        }
    }

    /// Reports a route without a backend that could receive requests.
    fn check_destinations(
        &mut self,
        at: &FieldLocation<'a>,
        route: &RouteEntry,
        destinations: &[Destination],
    ) {
        if route.backend_refs.is_empty() {
            self.error(at, "a route leads somewhere")
                .hint("add `backendRefs: [{name: app}]`, or a RequestRedirect filter");
        }
        let mut weights = destinations.iter().map(|destination| destination.weight);
        if !destinations.is_empty() && weights.all(|weight| weight == 0) {
            self.error(
                &at.key("backendRefs"),
                "all weights are zero, so nothing could be chosen",
            )
            .hint("give at least one backend a weight");
        }
    }

    /// Compiles the backends of fallbacks and mirrors, under their own policies, each once.
    ///
    /// Unknown names are skipped here, because they were already reported.
    fn compile_auxiliary_backends(
        &mut self,
        destinations: &[Destination],
        mirrors: &[MirrorSpec],
        references: &RouteReferences<'_, 'a>,
    ) -> Vec<Destination> {
        let fallback_backends = destinations.iter().filter_map(|destination| {
            match &destination.policy.fallback.as_ref()?.action {
                FallbackAction::Backend(name) => Some(name.clone()),
                FallbackAction::Response { .. } => None,
            }
        });
        let mut auxiliary_backends: Vec<Destination> = Vec::new();
        for name in fallback_backends.chain(mirrors.iter().map(|mirror| mirror.backend.clone())) {
            let Some(backend) = references
                .backends
                .iter()
                .position(|(_, backend)| backend.spec.name == name)
            else {
                continue;
            };
            if auxiliary_backends
                .iter()
                .any(|known| known.backend == backend)
            {
                continue;
            }
            let backend_scope = references.backend_scope(backend);
            let scopes: Vec<&SectionScope<'_, 'a>> = [backend_scope.as_ref(), references.defaults]
                .into_iter()
                .flatten()
                .collect();
            let is_quiet = std::mem::replace(&mut self.suppresses_warnings, true);
            auxiliary_backends.push(Destination {
                backend,
                weight: 1,
                policy: Arc::new(self.compile_policy(&name, &scopes)),
            });
            self.suppresses_warnings = is_quiet;
        }
        auxiliary_backends
    }

    /// Compiles the rate limits of a route.
    ///
    /// They apply before a backend is selected. Backends may therefore provide them only if all
    /// backends of the route refer to the same policy.
    fn compile_route_rate_limits(
        &mut self,
        at: &FieldLocation<'a>,
        route_scopes: &[Option<&SectionScope<'_, 'a>>],
        backend_scopes: &[(Option<&'a str>, Option<SectionScope<'a, 'a>>)],
        defaults: Option<&SectionScope<'_, 'a>>,
    ) -> RateLimitSpec {
        let first = backend_scopes.first().and_then(|(_, scope)| scope.as_ref());
        let is_mixed = backend_scopes.windows(2).any(|pair| pair[0].0 != pair[1].0);
        let is_limited = backend_scopes.iter().any(|(_, scope)| {
            scope
                .as_ref()
                .is_some_and(|scope| scope.sections.rate_limit.is_some())
        });
        let is_nearer = route_scopes
            .iter()
            .flatten()
            .any(|scope| scope.sections.rate_limit.is_some());
        if is_mixed && is_limited && !is_nearer {
            let hint = "a rate limit is asked before the backend is chosen; write it into the \
                        route or its policy";
            self.error(
                &at.key("backendRefs"),
                "the policies of these backends differ, and one has a `rateLimit`",
            )
            .hint(hint);
        }
        let scopes: Vec<&SectionScope<'_, 'a>> = route_scopes
            .iter()
            .copied()
            .chain([first, defaults])
            .flatten()
            .collect();
        self.compile_rate_limits(&scopes)
    }

    fn check_inbound_retries(
        &mut self,
        at: &FieldLocation<'a>,
        direction: Direction,
        policy: &PolicySpec,
    ) {
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
}

/// Whether a listener of the route verifies client certificates.
fn can_identify_clients(route: &RouteEntry, references: &RouteReferences<'_, '_>) -> bool {
    route.listeners.iter().any(|name| {
        references.listeners.iter().any(|(_, listener)| {
            let tls = listener.tls.as_ref();
            *listener.name == **name && tls.is_some_and(|tls| tls.client_ca.is_some())
        })
    })
}
