//! The fallback: a response that replaces a failure of the backend.
//!
//! This module does not know which failure occurred.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use http::HeaderValue;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    policy::{
        mode::ModeSetting,
        report::{DiagnosticReport, FieldLocation},
        sections::{
            description::Description,
            origin::SectionOrigin,
            section::{FoundSection, PolicySetFacts, Section, SectionContext},
        },
    },
    resilience::Mode,
};

/// Maximum size of the body of a fallback response, in bytes.
const MAX_FALLBACK_BODY_BYTES: usize = 64 << 10;

/// Response that replaces a failure. Exactly one of `response` and `backendRef` is set.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Fallback {
    /// Whether the fallback replaces failures. Shadow only counts the failures that would be
    /// replaced. Default Enforce.
    pub mode: ModeSetting,
    /// Failures that the fallback replaces. Default CircuitOpen, Timeout, RetriesExhausted,
    /// NoHealthyEndpoint.
    pub triggers: Option<Vec<FallbackTrigger>>,
    /// Fixed response that the client receives. A gRPC call receives the original failure
    /// instead.
    pub response: Option<FallbackResponse>,
    /// Backend that receives the request instead, under its own policy. The failed request must
    /// be unprocessed or idempotent, or `retry.retryNonIdempotent` must be set. Its body must
    /// still be buffered (`retry.maxBufferedBody`). If the failed request was sent to this
    /// backend, the client receives its failure.
    pub backend_ref: Option<AuxiliaryBackendRef>,
}

/// Failure that a fallback can replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum FallbackTrigger {
    /// The circuit breaker rejects the request.
    CircuitOpen,
    /// The connection or the response exceeds a timeout.
    Timeout,
    /// The last attempt fails and is not retried. The connection fails or is reset, or the
    /// response has a status of `retry.codes` or `retry.grpcCodes`. If those lists are empty,
    /// 502, 503, 504 and gRPC `unavailable` count.
    RetriesExhausted,
    /// No endpoint of the backend is available.
    NoHealthyEndpoint,
    /// `connectionLimits`, `admissionControl` or `protection` rejects the request.
    Overload,
}

/// Writes the name that policies use.
impl fmt::Display for FallbackTrigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CircuitOpen => "CircuitOpen",
            Self::Timeout => "Timeout",
            Self::RetriesExhausted => "RetriesExhausted",
            Self::NoHealthyEndpoint => "NoHealthyEndpoint",
            Self::Overload => "Overload",
        })
    }
}

/// Fixed response of a fallback.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FallbackResponse {
    /// HTTP status, 200 to 599. Default 503.
    pub status_code: Option<u16>,
    /// Media type of the body. Default `text/plain`.
    pub content_type: Option<String>,
    /// Body of the response, at most 64Ki. It must be empty with status 204 or 304. Default
    /// empty.
    #[serde(default)]
    pub body: String,
}

/// Reference to a backend that receives requests in addition to the backends of a route.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuxiliaryBackendRef {
    /// Name of the backend.
    pub name: String,
}

/// Configuration of a fallback, which replaces a failure with another response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FallbackSpec {
    /// Whether the fallback replaces failures, is only logged, or is off.
    pub mode: Mode,
    /// Failures that the fallback replaces.
    pub triggers: Vec<FallbackTrigger>,
    /// Source of the replacement response.
    pub action: FallbackAction,
    /// Source of the section.
    pub origin: SectionOrigin,
}

/// Response that replaces a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FallbackAction {
    /// A fixed response that the policy contains.
    Response {
        /// Status of the response, from 200 to 599.
        status: u16,
        /// Value of its `content-type` header.
        content_type: HeaderValue,
        /// Body of the response, at most 64 KiB.
        body: Bytes,
    },
    /// The response of the backend with this name.
    Backend(Arc<str>),
}

impl Section for Fallback {
    const KEY: &'static str = "fallback";
    type Spec = Option<FallbackSpec>;

    fn compile(
        found: Option<FoundSection<'_, Self>>,
        context: &mut SectionContext<'_>,
    ) -> Option<FallbackSpec> {
        let FoundSection {
            origin,
            at,
            section,
        } = found?;
        let default_triggers = [
            FallbackTrigger::CircuitOpen,
            FallbackTrigger::Timeout,
            FallbackTrigger::RetriesExhausted,
            FallbackTrigger::NoHealthyEndpoint,
        ];
        let triggers = section.triggers.as_deref().unwrap_or(&default_triggers);
        if triggers.is_empty() {
            context
                .report
                .error(
                    &at.key("triggers"),
                    "without triggers, the fallback never acts",
                )
                .hint("remove `triggers` for the default triggers, or write `mode: Off`");
        }
        if section.mode == ModeSetting::Off {
            return None;
        }
        let action = match (&section.response, &section.backend_ref) {
            (Some(response), None) => response.compile(&at.key("response"), context.report)?,
            (None, Some(reference)) => FallbackAction::Backend(reference.resolve(
                &at.key("backendRef"),
                context.facts,
                context.report,
            )?),
            _ => {
                context
                    .report
                    .error(
                        &at,
                        "a fallback must have either a `response` or a `backendRef`",
                    )
                    .hint("write one of the two, like `response: {statusCode: 503}`");
                return None;
            }
        };
        Some(FallbackSpec {
            mode: section.mode.mode(),
            triggers: triggers.to_vec(),
            action,
            origin,
        })
    }

    fn describe(spec: &Option<FallbackSpec>) -> Vec<Description> {
        let describe = |fallback: &FallbackSpec| {
            let description = Description::default()
                .with("mode", fallback.mode.name())
                .with_list("triggers", &fallback.triggers);
            let description = match &fallback.action {
                FallbackAction::Response {
                    status,
                    content_type,
                    body,
                } => description
                    .with("response.statusCode", status)
                    .with(
                        "response.contentType",
                        String::from_utf8_lossy(content_type.as_bytes()),
                    )
                    .with("response.body", format_args!("{} bytes", body.len())),
                FallbackAction::Backend(name) => description.with("backendRef", name),
            };
            description.with_origin(&fallback.origin)
        };
        spec.iter().map(describe).collect()
    }
}

impl FallbackResponse {
    fn compile(
        &self,
        at: &FieldLocation<'_>,
        report: &mut DiagnosticReport,
    ) -> Option<FallbackAction> {
        let status = self.status_code.unwrap_or(503);
        report.check_final_status(&at.key("statusCode"), status);
        if matches!(status, 204 | 304) && !self.body.is_empty() {
            report
                .error(
                    &at.key("body"),
                    format!("a response with status {status} must not have a body"),
                )
                .hint("remove the body, or write another `statusCode`");
        }
        if self.body.len() > MAX_FALLBACK_BODY_BYTES {
            report
                .error(
                    &at.key("body"),
                    format!("the body is longer than {MAX_FALLBACK_BODY_BYTES} bytes"),
                )
                .hint("serve a longer body from a backend, with `backendRef`");
        }
        let content_type = self.content_type.as_deref().unwrap_or("text/plain");
        let Ok(content_type) = HeaderValue::from_str(content_type) else {
            report
                .error(
                    &at.key("contentType"),
                    "this cannot be the value of a header",
                )
                .hint("write a media type like `application/json`");
            return None;
        };
        Some(FallbackAction::Response {
            status,
            content_type,
            body: Bytes::from(self.body.clone()),
        })
    }
}

impl AuxiliaryBackendRef {
    /// Returns the name of the backend, and reports an unknown one.
    pub(in crate::policy) fn resolve(
        &self,
        at: &FieldLocation<'_>,
        facts: &PolicySetFacts<'_>,
        report: &mut DiagnosticReport,
    ) -> Option<Arc<str>> {
        let names = facts.backends.iter().copied();
        if names.clone().any(|name| name == self.name) {
            return Some(Arc::from(self.name.as_str()));
        }
        report.report_unknown_reference(&at.key("name"), "backend", &self.name, names);
        None
    }
}
