//! The protective sections that may occur in `defaults`, in a named policy, or in a route.
//!
//! Each section has one module, with its format, its compiled form, its compile step and its
//! description. `with_sections` lists those that are inherited; fault injection is not.
//! docs/adding-a-policy.md walks through one section.
//!
//! The nearest source that contains a section provides all of it. The order is: route, policy
//! of the route, policy of the backend, defaults. The fields of two sources are never merged,
//! so that one location shows the whole effective section.

pub mod admission_control;
pub mod circuit_breaker;
pub mod connection_limits;
pub mod description;
pub mod fallback;
pub mod fault_injection;
pub mod hedging;
pub mod origin;
pub mod rate_limit;
pub mod retry;
pub mod retry_constraint;
pub mod section;
pub mod stale_if_error;
pub mod timeouts;

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::{
    report::{DiagnosticReport, FieldLocation},
    sections::{
        description::Description,
        origin::SectionOrigin,
        rate_limit::{RateLimitSection, RateLimitSpec},
        section::{FoundSection, PolicySetFacts, Section, SectionContext},
    },
};

/// Calls a macro with the list of sections.
///
/// A `destination` section applies to requests from a route to one of its backends. A `route`
/// section applies before a backend is selected.
macro_rules! with_sections {
    ($callback:ident) => {
        $callback! {
            destination {
                /// Timeouts of requests, attempts and connections.
                timeouts: crate::policy::sections::timeouts::Timeouts,
                /// Failures and statuses that are retried.
                retry: crate::policy::sections::retry::Retry,
                /// Budget that limits the retries to a backend.
                retry_constraint: crate::policy::sections::retry_constraint::RetryConstraint,
                /// Rejection of all requests to a backend that fails or is slow.
                circuit_breaker: crate::policy::sections::circuit_breaker::CircuitBreaker,
                /// Limits on requests in flight, queued requests and connections.
                connection_limits: crate::policy::sections::connection_limits::ConnectionLimits,
                /// Rejection of a share of the requests while a backend fails.
                admission_control: crate::policy::sections::admission_control::AdmissionControl,
                /// Additional attempts that are sent when a response is late.
                hedging: crate::policy::sections::hedging::Hedging,
                /// Response that replaces a failure.
                fallback: crate::policy::sections::fallback::Fallback,
                /// Cached responses that are sent while the backend fails.
                stale_if_error: crate::policy::sections::stale_if_error::StaleIfError,
            }
            route {
                /// Limits on the rate of requests.
                rate_limit: crate::policy::sections::rate_limit::RateLimitSection,
            }
        }
    };
}
pub(in crate::policy) use with_sections;

macro_rules! define_sections {
    (
        destination { $($(#[$doc:meta])* $name:ident: $section:ty,)* }
        route { $($(#[$route_doc:meta])* $route_name:ident: $route_section:ty,)* }
    ) => {
        /// Protective sections. An empty section `{}` applies all of its defaults. A missing
        /// section is inherited.
        #[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
        #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
        pub struct Sections {
            $($(#[$doc])* pub $name: Option<$section>,)*
            $($(#[$route_doc])* pub $route_name: Option<$route_section>,)*
        }

        impl Sections {
            /// Returns whether no section is set.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                $(self.$name.is_none() &&)* $(self.$route_name.is_none() &&)* true
            }
        }

        /// Effective policy for requests from a route to a backend, after inheritance.
        #[derive(Debug, Clone, PartialEq)]
        pub struct PolicySpec {
            $($(#[$doc])* pub $name: <$section as Section>::Spec,)*
        }

        impl PolicySpec {
            /// Compiles each section from the nearest scope that contains it; scopes are ordered
            /// nearest first.
            fn from_scopes(scopes: &[&SectionScope<'_>], context: &mut SectionContext<'_>) -> Self {
                Self {
                    $($name: {
                        let found = find_nearest(scopes, |sections| sections.$name.as_ref());
                        <$section as Section>::compile(found, context)
                    },)*
                }
            }

            /// Returns the effective values of each section, with its key. A section that is off
            /// or absent has none.
            #[must_use]
            pub fn describe(&self) -> Vec<(&'static str, Vec<Description>)> {
                vec![$((<$section>::KEY, <$section>::describe(&self.$name)),)*]
            }

            /// Returns one line for each difference to an older policy, with the section's key.
            #[must_use]
            pub fn describe_changes(&self, old: &Self) -> Vec<(&'static str, String)> {
                let mut changes = Vec::new();
                $(
                    let lines = <$section>::describe_changes(&old.$name, &self.$name);
                    changes.extend(lines.into_iter().map(|line| (<$section>::KEY, line)));
                )*
                changes
            }
        }
    };
}
with_sections!(define_sections);

/// Sections of one source, with its origin and location.
pub(in crate::policy) struct SectionScope<'a> {
    pub(in crate::policy) origin: SectionOrigin,
    pub(in crate::policy) at: FieldLocation<'a>,
    pub(in crate::policy) sections: &'a Sections,
}

impl<'a> SectionScope<'a> {
    /// Returns the sections of a named policy as those of a backend instead of a route.
    pub(in crate::policy) fn as_backend_policy(&self, name: &str) -> Self {
        Self {
            origin: SectionOrigin::BackendPolicy(Arc::from(name)),
            at: self.at.clone(),
            sections: self.sections,
        }
    }
}

fn find_nearest<'s, S: Section>(
    scopes: &[&'s SectionScope<'s>],
    select_section: impl Fn(&'s Sections) -> Option<&'s S>,
) -> Option<FoundSection<'s, S>> {
    scopes.iter().find_map(|scope| {
        select_section(scope.sections).map(|section| FoundSection {
            origin: scope.origin.clone(),
            at: scope.at.key(S::KEY),
            section,
        })
    })
}

/// Compiles the effective policy for requests to a backend.
pub(in crate::policy) fn compile_policy(
    backend: &str,
    scopes: &[&SectionScope<'_>],
    facts: &PolicySetFacts<'_>,
    report: &mut DiagnosticReport,
) -> PolicySpec {
    let found = find_nearest(scopes, |sections| sections.timeouts.as_ref());
    let timeouts = timeouts::effective(found.as_ref());
    let mut context = SectionContext {
        report,
        facts,
        backend,
        request_timeout: timeouts.request,
        attempt_timeout: timeouts.backend_request,
    };
    PolicySpec::from_scopes(scopes, &mut context)
}

/// Compiles the effective rate limits of a route.
pub(in crate::policy) fn compile_rate_limits(
    scopes: &[&SectionScope<'_>],
    facts: &PolicySetFacts<'_>,
    report: &mut DiagnosticReport,
) -> RateLimitSpec {
    let found = find_nearest(scopes, |sections| sections.rate_limit.as_ref());
    compile_route_section::<RateLimitSection>(found, facts, report)
}

/// Compiles a section that applies before a backend is selected.
pub(in crate::policy) fn compile_route_section<S: Section>(
    found: Option<FoundSection<'_, S>>,
    facts: &PolicySetFacts<'_>,
    report: &mut DiagnosticReport,
) -> S::Spec {
    let mut context = SectionContext {
        report,
        facts,
        backend: "",
        request_timeout: None,
        attempt_timeout: None,
    };
    S::compile(found, &mut context)
}
