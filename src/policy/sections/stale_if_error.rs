//! Cached responses that are sent while the backend fails.

use std::{sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    policy::{
        mode::ModeSetting,
        sections::{
            description::{Description, describe_state},
            origin::SectionOrigin,
            section::{FoundSection, Section, SectionContext},
        },
        units::{ByteSize, PolicyDuration, duration_or},
    },
    resilience::Mode,
};

/// Caches successful responses to GET, and sends them again while the backend fails (RFC 5861
/// `stale-if-error`, RFC 9111).
///
/// A response is cached under these conditions:
///
/// - Its status is 200, and its body has at most `maxEntryBytes`.
/// - It has no `set-cookie`, and its `cache-control` has no `private`, `no-store`, `no-cache`,
///   `must-revalidate` or `proxy-revalidate`.
/// - The request has no `range`, and no `no-store` in its `cache-control`.
/// - The request has no `authorization`, `proxy-authorization`, `cookie` or `x-api-key`, or the
///   response is marked as `public` or with `s-maxage`.
///
/// Cached responses are distinguished by route, host, target, `x-forwarded-host`,
/// `x-forwarded-proto`, and the headers that `vary` names. If the app varies its response by
/// other headers, it must list them in `vary`.
///
/// A GET or HEAD request receives the cached response instead of 500, 502, 503 or 504. The same
/// applies if the request fails without a response, with a failure that FallbackTrigger lists. A
/// request with credentials receives only public responses. A request with `no-cache` or
/// `no-store` in its `cache-control` receives none. The response carries `age` and
/// `cache-status`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StaleIfError {
    /// Whether cached responses are sent. Shadow caches responses, and counts the failures that
    /// a cached response would replace. Default Enforce.
    pub mode: ModeSetting,
    /// Maximum time since the response was received, above 0s. `stale-if-error` in the response
    /// can shorten it. Default 5m.
    pub max_age: Option<PolicyDuration>,
    /// Maximum size of a cached body, at most `maxBytes`. Default 64Ki.
    pub max_entry_bytes: Option<ByteSize>,
    /// Maximum size of all cached responses of a backend, including headers. The least recently
    /// used entries are evicted first. Default 32Mi.
    pub max_bytes: Option<ByteSize>,
}

/// Configuration of stale responses, which are cached and replace failures of the backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaleIfErrorSpec {
    /// Whether stale responses are used, only logged, or off.
    pub mode: Mode,
    /// Maximum age of a response that may be used.
    pub max_age: Duration,
    /// Maximum size of one cached response, in bytes.
    pub max_entry_bytes: usize,
    /// Maximum size of all cached responses, in bytes.
    pub max_bytes: usize,
    /// Name of the state; sections with the same name share the cache.
    pub name: Arc<str>,
    /// Source of the section.
    pub origin: SectionOrigin,
}

impl Section for StaleIfError {
    const KEY: &'static str = "staleIfError";
    type Spec = Option<StaleIfErrorSpec>;

    fn compile(
        found: Option<FoundSection<'_, Self>>,
        context: &mut SectionContext<'_>,
    ) -> Option<StaleIfErrorSpec> {
        let FoundSection {
            origin,
            at,
            section,
        } = found?;
        let max_age = duration_or(section.max_age, Duration::from_mins(5));
        let max_entry_bytes = section.max_entry_bytes.map_or(64 << 10, ByteSize::as_usize);
        let max_bytes = section.max_bytes.map_or(32 << 20, ByteSize::as_usize);
        if max_age.is_zero() {
            context
                .report
                .error(
                    &at.key("maxAge"),
                    "with 0s, no cached response is ever used",
                )
                .hint("5m is the default; `mode: Off` disables cached responses");
        }
        if max_entry_bytes > max_bytes {
            context
                .report
                .error(
                    &at.key("maxEntryBytes"),
                    "one cached response must not be larger than all of them together",
                )
                .hint("write a `maxEntryBytes` of at most `maxBytes`");
        }
        let spec = StaleIfErrorSpec {
            mode: section.mode.mode(),
            max_age,
            max_entry_bytes,
            max_bytes,
            name: origin.state_name(context.backend),
            origin,
        };
        (section.mode != ModeSetting::Off).then_some(spec)
    }

    fn describe(spec: &Option<StaleIfErrorSpec>) -> Vec<Description> {
        let describe = |stale: &StaleIfErrorSpec| {
            Description::default()
                .with("mode", stale.mode.name())
                .with("maxAge", PolicyDuration(stale.max_age))
                .with("maxEntryBytes", stale.max_entry_bytes)
                .with("maxBytes", stale.max_bytes)
                .with("state", &stale.name)
                .with_origin(&stale.origin)
        };
        spec.iter().map(describe).collect()
    }

    fn describe_state_change(
        old: &Option<StaleIfErrorSpec>,
        new: &Option<StaleIfErrorSpec>,
    ) -> String {
        let (Some(old), Some(new)) = (old, new) else {
            return String::new();
        };
        let retained = "cached responses are retained";
        describe_state(&old.name, &new.name, true, [retained, retained])
    }
}
