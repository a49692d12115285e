//! Compiles hedging, fallbacks, stale responses and fault injection.
//!
//! It decides the defaults and rejects sections without effect. It checks that a backend that a
//! fallback or mirror names exists. It does not know the latencies that hedging learns.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use bytes::Bytes;
use http::HeaderValue;

use crate::{
    policy::{
        compile::{
            compiler::{Compiler, FieldLocation},
            sections::{self, ResolvedSection},
        },
        document::{
            AuxiliaryBackendRef, Fallback, FallbackResponse, FallbackTrigger, FaultInjection,
            Hedging, ModeSetting, StaleIfError,
        },
        snapshot::{
            FallbackAction, FallbackSpec, FaultAbortStatus, FaultInjectionSpec, HedgingSpec,
            StaleIfErrorSpec,
        },
        units::{ByteSize, Percent, StatusRange},
    },
    resilience::{hedge::HedgeConfig, ratio::Ratio},
};

/// Maximum size of the body of a fallback response, in bytes.
const MAX_FALLBACK_BODY_BYTES: usize = 64 << 10;

impl<'a> Compiler<'a> {
    pub(super) fn compile_hedging(
        &mut self,
        found: &ResolvedSection<'_, 'a, Hedging>,
        backend: &str,
    ) -> Option<HedgingSpec> {
        let ResolvedSection {
            origin,
            at,
            section,
        } = found;
        let max_attempts = section.max_attempts.unwrap_or(2);
        if !(2..=5).contains(&max_attempts) {
            self.error(
                &at.key("maxAttempts"),
                format!("{max_attempts} requests in all are not a hedge"),
            )
            .hint("write 2 to 5: the first counts");
        }
        if section.hedging_delay.is_some_and(|delay| delay.0.is_zero()) {
            self.error(
                &at.key("hedgingDelay"),
                "without a delay everything would be asked twice",
            )
            .hint("write one like `80ms`, or take it out: then it is learned");
        }
        let default = [StatusRange::from_bounds(502, 504)];
        let spec = HedgingSpec {
            mode: sections::compile_mode(section.mode),
            config: HedgeConfig {
                max_attempts: NonZeroU32::new(max_attempts).unwrap_or(NonZeroU32::MIN),
                delay: section.hedging_delay.map(|span| span.0),
            },
            non_fatal_codes: section
                .non_fatal_codes
                .as_deref()
                .unwrap_or(&default)
                .iter()
                .collect(),
            name: origin.state_name(backend),
            origin: origin.clone(),
        };
        (section.mode != ModeSetting::Off).then_some(spec)
    }

    pub(super) fn compile_fallback(
        &mut self,
        found: &ResolvedSection<'_, 'a, Fallback>,
    ) -> Option<FallbackSpec> {
        let ResolvedSection {
            origin,
            at,
            section,
        } = found;
        let default = [
            FallbackTrigger::CircuitOpen,
            FallbackTrigger::Timeout,
            FallbackTrigger::RetriesExhausted,
            FallbackTrigger::NoHealthyEndpoint,
        ];
        let triggers = section.triggers.as_deref().unwrap_or(&default);
        if triggers.is_empty() {
            self.error(&at.key("triggers"), "nothing would make the fallback act")
                .hint("take `triggers` out for the usual ones, or write `mode: Off`");
        }
        if section.mode == ModeSetting::Off {
            return None;
        }
        let action = match (&section.response, &section.backend_ref) {
            (Some(response), None) => {
                self.compile_fallback_response(&at.key("response"), response)?
            }
            (None, Some(reference)) => FallbackAction::Backend(
                self.resolve_auxiliary_backend(&at.key("backendRef"), reference)?,
            ),
            _ => {
                self.error(at, "a fallback has a `response` or a `backendRef`")
                    .hint("write one of the two, like `response: {statusCode: 503}`");
                return None;
            }
        };
        Some(FallbackSpec {
            mode: sections::compile_mode(section.mode),
            triggers: triggers.to_vec(),
            action,
            origin: origin.clone(),
        })
    }

    fn compile_fallback_response(
        &mut self,
        at: &FieldLocation<'a>,
        section: &FallbackResponse,
    ) -> Option<FallbackAction> {
        let status = section.status_code.unwrap_or(503);
        self.check_final_status(&at.key("statusCode"), status);
        if matches!(status, 204 | 304) && !section.body.is_empty() {
            self.error(
                &at.key("body"),
                format!("an answer of {status} has no body"),
            )
            .hint("take the body out, or write another `statusCode`");
        }
        if section.body.len() > MAX_FALLBACK_BODY_BYTES {
            self.error(
                &at.key("body"),
                format!("this is longer than {MAX_FALLBACK_BODY_BYTES} bytes"),
            )
            .hint("a page that long belongs on a backend: use `backendRef`");
        }
        let content_type = section.content_type.as_deref().unwrap_or("text/plain");
        let Ok(content_type) = HeaderValue::from_str(content_type) else {
            self.error(
                &at.key("contentType"),
                "this cannot be the value of a header",
            )
            .hint("write a media type like `application/json`");
            return None;
        };
        Some(FallbackAction::Response {
            status,
            content_type,
            body: Bytes::from(section.body.clone()),
        })
    }

    /// Returns the name of a backend that a fallback or mirror refers to, and reports an
    /// unknown one.
    pub(super) fn resolve_auxiliary_backend(
        &mut self,
        at: &FieldLocation<'a>,
        reference: &AuxiliaryBackendRef,
    ) -> Option<Arc<str>> {
        let documents = self.documents;
        let names = documents
            .iter()
            .flat_map(|located| &located.document.spec.backends)
            .map(|backend| backend.name.as_str());
        if names.clone().any(|name| name == reference.name) {
            return Some(Arc::from(reference.name.as_str()));
        }
        self.report_unknown_reference(&at.key("name"), "backend", &reference.name, names);
        None
    }

    pub(super) fn compile_stale_if_error(
        &mut self,
        found: &ResolvedSection<'_, 'a, StaleIfError>,
        backend: &str,
    ) -> Option<StaleIfErrorSpec> {
        let ResolvedSection {
            origin,
            at,
            section,
        } = found;
        let bytes = |size: Option<ByteSize>, default: usize| {
            size.map_or(default, |size| {
                usize::try_from(size.0).unwrap_or(usize::MAX)
            })
        };
        let max_age = section
            .max_age
            .map_or(Duration::from_mins(5), |span| span.0);
        let (max_entry_bytes, max_bytes) = (
            bytes(section.max_entry_bytes, 64 << 10),
            bytes(section.max_bytes, 32 << 20),
        );
        if max_age.is_zero() {
            self.error(&at.key("maxAge"), "nothing would ever be young enough")
                .hint("5m is the default; `mode: Off` switches it off");
        }
        if max_entry_bytes > max_bytes {
            self.error(
                &at.key("maxEntryBytes"),
                "one answer may not be longer than all together",
            )
            .hint("write a `maxEntryBytes` of at most `maxBytes`");
        }
        let spec = StaleIfErrorSpec {
            mode: sections::compile_mode(section.mode),
            max_age,
            max_entry_bytes,
            max_bytes,
            name: origin.state_name(backend),
            origin: origin.clone(),
        };
        (section.mode != ModeSetting::Off).then_some(spec)
    }

    pub(super) fn compile_fault_injection(
        &mut self,
        at: &FieldLocation<'a>,
        section: &FaultInjection,
    ) -> Option<FaultInjectionSpec> {
        let share = |percent: Option<Percent>| percent.map_or(Ratio::ONE, Percent::ratio);
        if section.delay.is_none() && section.abort.is_none() {
            self.error(at, "this fault does nothing")
                .hint("add a `delay` or an `abort`");
        }
        if section
            .delay
            .as_ref()
            .is_some_and(|delay| delay.fixed_delay.0.is_zero())
        {
            self.error(&at.key("delay").key("fixedDelay"), "a delay has a length")
                .hint("write one like `200ms`");
        }
        let abort = section.abort.as_ref().and_then(|abort| {
            let at = at.key("abort");
            let abort_status = match (abort.http_status, abort.grpc_status) {
                (Some(status), None) => {
                    self.check_final_status(&at.key("httpStatus"), status);
                    FaultAbortStatus::Http(status)
                }
                (None, Some(code)) => FaultAbortStatus::Grpc(code.number()),
                _ => {
                    self.error(&at, "an abort has an `httpStatus` or a `grpcStatus`")
                        .hint("write one of the two, like `httpStatus: 503`");
                    return None;
                }
            };
            Some((abort_status, share(abort.percentage)))
        });
        let spec = FaultInjectionSpec {
            mode: sections::compile_mode(section.mode),
            until: section.until.0,
            delay: section
                .delay
                .as_ref()
                .map(|delay| (delay.fixed_delay.0, share(delay.percentage))),
            abort,
            max_active_faults: self
                .require_at_least_one(at, "maxActiveFaults", section.max_active_faults, 100)
                .get(),
        };
        (section.mode != ModeSetting::Off).then_some(spec)
    }

    fn check_final_status(&mut self, at: &FieldLocation<'a>, status: u16) {
        if !(200..=599).contains(&status) {
            self.error(at, format!("{status} is not the status of an answer"))
                .hint("write a number from 200 to 599");
        }
    }
}
