//! Compiles the backends of a route, each with its effective policy.

use std::sync::Arc;

use crate::{
    policy::{
        compile::{compiler::Compiler, routes::references::RouteReferences},
        document::{Direction, RouteEntry},
        report::FieldLocation,
        sections::{PolicySpec, fallback::FallbackAction, rate_limit::spec::RateLimitSpec},
        sections::{SectionScope, compile_policy, compile_rate_limits},
        snapshot::{Destination, MirrorSpec},
    },
    resilience::Mode,
};

/// Sources of the sections of a route, besides the policies of its backends.
pub(super) struct RouteScopes<'s> {
    pub(super) route: SectionScope<'s>,
    pub(super) named_policy: Option<&'s SectionScope<'s>>,
    pub(super) defaults: Option<&'s SectionScope<'s>>,
}

impl RouteScopes<'_> {
    /// Returns all sources for a backend with this policy, nearest first.
    fn nearest_first<'r>(
        &'r self,
        backend_policy: Option<&'r SectionScope<'r>>,
    ) -> Vec<&'r SectionScope<'r>> {
        [
            Some(&self.route),
            self.named_policy,
            backend_policy,
            self.defaults,
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Policy that a backend refers to.
pub(super) struct BackendPolicy<'a> {
    name: Option<&'a str>,
    scope: Option<SectionScope<'a>>,
}

impl<'a> Compiler<'a> {
    /// Compiles the backends of a route, and returns the policies that they refer to.
    pub(super) fn compile_destinations(
        &mut self,
        route: &RouteEntry,
        direction: Direction,
        scopes: &RouteScopes<'_>,
        references: &RouteReferences<'_, 'a>,
    ) -> (Vec<Destination>, Vec<BackendPolicy<'a>>) {
        let mut destinations = Vec::new();
        let mut backend_policies = Vec::new();
        for (index, reference) in route.backend_refs.iter().enumerate() {
            let at = scopes.route.at.key("backendRefs").index(index);
            let Some(backend) =
                self.find_backend(&at.key("name"), &reference.name, references.backends)
            else {
                continue;
            };
            let backend_policy = BackendPolicy {
                name: references.backends[backend].1.policy_name,
                scope: references.backend_scope(backend),
            };
            let mut policy = compile_policy(
                &reference.name,
                &scopes.nearest_first(backend_policy.scope.as_ref()),
                &self.facts,
                &mut self.report,
            );
            self.check_inbound_retries(&at, direction, &policy);
            if let Some(breaker) = &mut policy.circuit_breaker {
                let has_one_destination = route.backend_refs.len() == 1;
                let backend = (!has_one_destination).then_some(reference.name.as_str());
                breaker.set_route_scope_name(&route.name, backend);
            }
            backend_policies.push(backend_policy);
            destinations.push(Destination {
                backend,
                weight: reference.weight.unwrap_or(1),
                policy: Arc::new(policy),
            });
        }
        (destinations, backend_policies)
    }

    /// Reports a route without a backend that could receive requests.
    pub(super) fn check_destinations(
        &mut self,
        at: &FieldLocation<'_>,
        route: &RouteEntry,
        destinations: &[Destination],
    ) {
        if route.backend_refs.is_empty() {
            self.report
                .error(at, "a route must have a backend or a redirect")
                .hint("add `backendRefs: [{name: app}]`, or a RequestRedirect filter");
        }
        let mut weights = destinations.iter().map(|destination| destination.weight);
        if !destinations.is_empty() && weights.all(|weight| weight == 0) {
            self.report
                .error(
                    &at.key("backendRefs"),
                    "all weights are 0, so no backend can be selected",
                )
                .hint("give at least one backend a weight");
        }
    }

    /// Compiles the backends of fallbacks and mirrors, under their own policies, each once.
    ///
    /// Unknown names are skipped here, because they were already reported.
    pub(super) fn compile_auxiliary_backends(
        &mut self,
        route: &RouteEntry,
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
            let scopes: Vec<&SectionScope<'_>> = [backend_scope.as_ref(), references.defaults]
                .into_iter()
                .flatten()
                .collect();
            let is_quiet = std::mem::replace(&mut self.report.suppresses_warnings, true);
            let mut policy = compile_policy(&name, &scopes, &self.facts, &mut self.report);
            if let Some(breaker) = &mut policy.circuit_breaker {
                breaker.set_route_scope_name(&route.name, Some(&name));
            }
            auxiliary_backends.push(Destination {
                backend,
                weight: 1,
                policy: Arc::new(policy),
            });
            self.report.suppresses_warnings = is_quiet;
        }
        auxiliary_backends
    }

    /// Compiles the rate limits of a route.
    ///
    /// They apply before a backend is selected. Backends may therefore provide them only if all
    /// backends of the route refer to the same policy.
    pub(super) fn compile_route_rate_limits(
        &mut self,
        scopes: &RouteScopes<'_>,
        backend_policies: &[BackendPolicy<'_>],
    ) -> RateLimitSpec {
        let has_rate_limit = |scope: &SectionScope<'_>| scope.sections.rate_limit.is_some();
        let is_mixed = backend_policies
            .windows(2)
            .any(|pair| pair[0].name != pair[1].name);
        let is_limited = backend_policies
            .iter()
            .any(|policy| policy.scope.as_ref().is_some_and(has_rate_limit));
        let is_nearer =
            has_rate_limit(&scopes.route) || scopes.named_policy.is_some_and(has_rate_limit);
        if is_mixed && is_limited && !is_nearer {
            let hint = "a rate limit is evaluated before the backend is selected; write it into \
                        the route or its policy";
            self.report
                .error(
                    &scopes.route.at.key("backendRefs"),
                    "the policies of these backends differ, and one has a `rateLimit`",
                )
                .hint(hint);
        }
        let backend_scope = backend_policies
            .first()
            .and_then(|policy| policy.scope.as_ref());
        compile_rate_limits(
            &scopes.nearest_first(backend_scope),
            &self.facts,
            &mut self.report,
        )
    }

    fn check_inbound_retries(
        &mut self,
        at: &FieldLocation<'_>,
        direction: Direction,
        policy: &PolicySpec,
    ) {
        let retry = &policy.retry;
        if direction == Direction::Inbound
            && retry.mode == Mode::Enforce
            && retry.config.attempts > 0
        {
            self.report
                .warning(
                    at,
                    format!(
                        "retries towards the app (from {}) multiply with those of its clients",
                        retry.origin
                    ),
                )
                .hint("retry on one side of a hop only: write `retry: {mode: Off}` into the route");
        }
    }
}
