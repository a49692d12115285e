//! Compiles routes: their actions and effective policies.
//!
//! It resolves names to indices, inherits the policy of each pair of route and backend, and
//! sorts the rules of each listener. It rejects routes that could receive or send no request.

mod destinations;
mod filters;
pub(super) mod references;
mod route_match;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use crate::policy::{
    compile::{
        compiler::Compiler,
        routes::{destinations::RouteScopes, references::RouteReferences},
    },
    document::{Direction, RouteEntry, Sections},
    matching::RouteRule,
    report::FieldLocation,
    sections::origin::SectionOrigin,
    sections::{
        SectionScope, compile_route_section,
        fault_injection::FaultInjection,
        section::{FoundSection, Section},
    },
    snapshot::{FilterSpec, RouteActionSpec, RouteSpec},
};

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
            self.report
                .check_name(&at.key("name"), "route", &route.name, &mut seen);
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
                self.report
                    .warning(
                        at,
                        format!(
                            "no route matches the requests of the listener `{}`",
                            listener.name
                        ),
                    )
                    .hint("every request there receives 404");
            }
            rules[index].sort_by_cached_key(|rule| {
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
                self.report.report_unknown_reference(
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
        at: &FieldLocation<'_>,
        route: &RouteEntry,
        references: &RouteReferences<'_, 'a>,
    ) -> Vec<usize> {
        let mut found: Vec<usize> = Vec::new();
        if route.listeners.is_empty() {
            self.report
                .error(at, "a route without listeners receives no requests")
                .hint("name at least one, like `listeners: [inbound]`");
        }
        for (index, name) in route.listeners.iter().enumerate() {
            match references
                .listeners
                .iter()
                .position(|(_, listener)| *listener.name == **name)
            {
                Some(position) => found.push(position),
                None => self.report.report_unknown_reference(
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
            self.report
                .error(at, "a route must be inbound or outbound, not both")
                .hint("write one route for each direction");
        }
        found
    }

    fn compile_route(
        &mut self,
        at: &FieldLocation<'_>,
        route: &'a RouteEntry,
        direction: Direction,
        references: &RouteReferences<'_, 'a>,
    ) -> RouteSpec {
        let route_sections: Sections = route.sections();
        let filters = self.compile_filters(at, route);
        let name: Arc<str> = Arc::from(route.name.as_str());
        let route_scope = SectionScope {
            origin: SectionOrigin::Route(name.clone()),
            at: at.clone(),
            sections: &route_sections,
        };
        self.check_unused_sections(std::iter::once(&route_scope));
        let fault_injection = route.fault_injection.as_ref().map(|section| FoundSection {
            origin: route_scope.origin.clone(),
            at: at.key(FaultInjection::KEY),
            section,
        });
        let scopes = RouteScopes {
            route: route_scope,
            named_policy: self.resolve_named_policy(&at.key("policy"), route, references),
            defaults: references.defaults,
        };
        let (destinations, backend_policies) =
            self.compile_destinations(route, direction, &scopes, references);
        let fault_injection = compile_route_section(fault_injection, &self.facts, &mut self.report);
        let auxiliary_backends =
            self.compile_auxiliary_backends(route, &destinations, &filters.mirrors, references);
        let rate_limits = self.compile_route_rate_limits(&scopes, &backend_policies);
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
        let allowed_identities =
            self.compile_allowed_identities(&at.key("allow"), route.allow.as_ref(), can_identify);
        RouteSpec {
            name,
            direction,
            filters: filters.spec,
            allowed_identities,
            action,
            rate_limits,
            fault_injection,
            mirrors: filters.mirrors,
            auxiliary_backends,
        }
    }

    /// Returns the sections of the policy that the route refers to, if it refers to one.
    fn resolve_named_policy<'r>(
        &mut self,
        at: &FieldLocation<'_>,
        route: &RouteEntry,
        references: &RouteReferences<'r, 'a>,
    ) -> Option<&'r SectionScope<'a>> {
        let name = route.policy.as_deref()?;
        let scope = references.policies.get(name);
        if scope.is_none() {
            let known = references.policies.keys().copied();
            self.report
                .report_unknown_reference(at, "policy", name, known);
        }
        scope
    }

    /// Reports the parts of a redirecting route that have no effect.
    fn check_redirect(
        &mut self,
        at: &FieldLocation<'_>,
        route: &RouteEntry,
        has_other_parts: bool,
    ) {
        if !route.backend_refs.is_empty() {
            self.report
                .error(
                    &at.key("backendRefs"),
                    "a redirect sends no request to a backend",
                )
                .hint("remove `backendRefs` or the redirect");
        }
        if has_other_parts {
            self.report
                .error(
                    at,
                    "a redirect is sent at once, so the other parts of the route have no effect",
                )
                .hint("remove the other sections, the policy and the other filters");
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
