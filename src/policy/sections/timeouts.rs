//! Timeouts of requests, attempts and connections.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::{
    sections::{
        description::Description,
        origin::SectionOrigin,
        section::{FoundSection, Section, SectionContext},
    },
    units::{PolicyDuration, duration_or},
};

/// Timeouts of requests, attempts and connections. `0s` disables a timeout.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Timeouts {
    /// Maximum time of the whole request with all attempts, until the response head. It starts
    /// when the client has sent the whole request. Default 15s.
    pub request: Option<PolicyDuration>,
    /// Maximum time of one attempt, until the response head; at most `request`. Default 5s, or
    /// `request` if that is shorter.
    pub backend_request: Option<PolicyDuration>,
    /// Maximum time to establish a connection, including TLS. Default 1s.
    pub connect: Option<PolicyDuration>,
    /// Maximum time without data while a body or a tunnel is relayed, in either direction.
    /// Default 5m.
    pub stream_idle: Option<PolicyDuration>,
}

/// Time limits of requests, attempts and connections; `None` means no limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeoutSpec {
    /// Maximum time of the whole request, with all attempts.
    pub request: Option<Duration>,
    /// Maximum time of one attempt.
    pub backend_request: Option<Duration>,
    /// Maximum time to establish a connection.
    pub connect: Option<Duration>,
    /// Maximum time without data in a body or a tunnel.
    pub stream_idle: Option<Duration>,
    /// Source of the section.
    pub origin: SectionOrigin,
}

impl Section for Timeouts {
    const KEY: &'static str = "timeouts";
    type Spec = TimeoutSpec;

    fn compile(
        found: Option<FoundSection<'_, Self>>,
        context: &mut SectionContext<'_>,
    ) -> TimeoutSpec {
        let effective = effective(found.as_ref());
        if let Some(found) = &found
            && let Some(attempt_timeout) = found.section.backend_request
            && let Some(request_timeout) = effective.request
            && attempt_timeout.0 > request_timeout
        {
            let hint = format!(
                "write a `backendRequest` of at most {}",
                PolicyDuration(request_timeout)
            );
            context
                .report
                .error(
                    &found.at.key("backendRequest"),
                    "one attempt must not take longer than the whole request",
                )
                .hint(hint);
        }
        effective
    }

    fn describe(spec: &TimeoutSpec) -> Vec<Description> {
        let duration = |duration: Option<Duration>| {
            duration.map_or_else(
                || "off".to_owned(),
                |duration| PolicyDuration(duration).to_string(),
            )
        };
        let description = Description::default()
            .with("request", duration(spec.request))
            .with("backendRequest", duration(spec.backend_request))
            .with("connect", duration(spec.connect))
            .with("streamIdle", duration(spec.stream_idle))
            .with_origin(&spec.origin);
        vec![description]
    }
}

/// Returns the effective timeouts, without a check of their values.
pub(in crate::policy) fn effective(found: Option<&FoundSection<'_, Timeouts>>) -> TimeoutSpec {
    let none = Timeouts::default();
    let section = found.map_or(&none, |found| found.section);
    let seconds_or = |span: Option<PolicyDuration>, default: u64| {
        let duration = duration_or(span, Duration::from_secs(default));
        (!duration.is_zero()).then_some(duration)
    };
    let request = seconds_or(section.request, 15);
    let backend_request = seconds_or(section.backend_request, 5);
    TimeoutSpec {
        request,
        backend_request: match (request, backend_request) {
            (Some(request), Some(attempt)) => Some(attempt.min(request)),
            (_, attempt) => attempt,
        },
        connect: seconds_or(section.connect, 1),
        stream_idle: seconds_or(section.stream_idle, 300),
        origin: found.map(|found| found.origin.clone()).unwrap_or_default(),
    }
}
