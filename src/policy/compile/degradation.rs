//! Hedging, fallbacks, stale answers and faults on purpose.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use bytes::Bytes;
use http::HeaderValue;

use super::{
    At, Compiler,
    sections::{self, Found},
};
use crate::{
    policy::{
        document::{
            AsideRef, Fallback, FallbackResponse, FallbackTrigger, FaultInjection, Hedging,
            ModeName, StaleIfError,
        },
        snapshot::{FallbackSpec, FallbackTo, FaultAnswer, FaultSpec, HedgingSpec, StaleSpec},
        units::{Percent, Size, StatusRange},
    },
    resilience::{hedge::HedgeConfig, ratio::Ratio},
};

/// The longest body of a fallback.
const MAX_BODY: usize = 64 << 10;

impl<'a> Compiler<'a> {
    pub(super) fn hedging(
        &mut self,
        found: &Found<'_, 'a, Hedging>,
        backend: &str,
    ) -> Option<HedgingSpec> {
        let Found {
            origin,
            at,
            section: written,
        } = found;
        let max_attempts = written.max_attempts.unwrap_or(2);
        if !(2..=5).contains(&max_attempts) {
            self.error(
                &at.key("maxAttempts"),
                format!("{max_attempts} requests in all are not a hedge"),
            )
            .hint("write 2 to 5: the first counts");
        }
        if written.hedging_delay.is_some_and(|delay| delay.0.is_zero()) {
            self.error(
                &at.key("hedgingDelay"),
                "without a delay everything would be asked twice",
            )
            .hint("write one like `80ms`, or take it out: then it is learned");
        }
        let usual = [StatusRange::of(502, 504)];
        let spec = HedgingSpec {
            mode: sections::mode(written.mode),
            config: HedgeConfig {
                max_attempts: NonZeroU32::new(max_attempts).unwrap_or(NonZeroU32::MIN),
                delay: written.hedging_delay.map(|span| span.0),
            },
            non_fatal: written
                .non_fatal_codes
                .as_deref()
                .unwrap_or(&usual)
                .iter()
                .collect(),
            name: origin.state_name(backend),
            origin: origin.clone(),
        };
        (written.mode != ModeName::Off).then_some(spec)
    }

    pub(super) fn fallback(&mut self, found: &Found<'_, 'a, Fallback>) -> Option<FallbackSpec> {
        let Found {
            origin,
            at,
            section: written,
        } = found;
        let usual = [
            FallbackTrigger::CircuitOpen,
            FallbackTrigger::Timeout,
            FallbackTrigger::RetriesExhausted,
            FallbackTrigger::NoHealthyEndpoint,
        ];
        let triggers = written.triggers.as_deref().unwrap_or(&usual);
        if triggers.is_empty() {
            self.error(&at.key("triggers"), "nothing would make the fallback act")
                .hint("take `triggers` out for the usual ones, or write `mode: Off`");
        }
        if written.mode == ModeName::Off {
            return None;
        }
        let to = match (&written.response, &written.backend_ref) {
            (Some(response), None) => self.fallback_response(&at.key("response"), response)?,
            (None, Some(reference)) => {
                FallbackTo::Backend(self.aside(&at.key("backendRef"), reference)?)
            }
            _ => {
                self.error(at, "a fallback has a `response` or a `backendRef`")
                    .hint("write one of the two, like `response: {statusCode: 503}`");
                return None;
            }
        };
        Some(FallbackSpec {
            mode: sections::mode(written.mode),
            triggers: triggers.to_vec(),
            to,
            origin: origin.clone(),
        })
    }

    fn fallback_response(&mut self, at: &At<'a>, written: &FallbackResponse) -> Option<FallbackTo> {
        let status = written.status_code.unwrap_or(503);
        self.check_final_status(&at.key("statusCode"), status);
        if matches!(status, 204 | 304) && !written.body.is_empty() {
            self.error(
                &at.key("body"),
                format!("an answer of {status} has no body"),
            )
            .hint("take the body out, or write another `statusCode`");
        }
        if written.body.len() > MAX_BODY {
            self.error(
                &at.key("body"),
                format!("this is longer than {MAX_BODY} bytes"),
            )
            .hint("a page that long belongs on a backend: use `backendRef`");
        }
        let content_type = written.content_type.as_deref().unwrap_or("text/plain");
        let Ok(content_type) = HeaderValue::from_str(content_type) else {
            self.error(
                &at.key("contentType"),
                "this cannot be the value of a header",
            )
            .hint("write a media type like `application/json`");
            return None;
        };
        Some(FallbackTo::Response {
            status,
            content_type,
            body: Bytes::from(written.body.clone()),
        })
    }

    /// A backend that is asked beside those of a route.
    pub(super) fn aside(&mut self, at: &At<'a>, reference: &AsideRef) -> Option<Arc<str>> {
        let documents = self.documents;
        let names = documents
            .iter()
            .flat_map(|located| &located.document.spec.backends)
            .map(|backend| backend.name.as_str());
        if names.clone().any(|name| name == reference.name) {
            return Some(Arc::from(reference.name.as_str()));
        }
        self.unknown_reference(&at.key("name"), "backend", &reference.name, names);
        None
    }

    pub(super) fn stale(
        &mut self,
        found: &Found<'_, 'a, StaleIfError>,
        backend: &str,
    ) -> Option<StaleSpec> {
        let Found {
            origin,
            at,
            section: written,
        } = found;
        let bytes = |size: Option<Size>, usual: usize| {
            size.map_or(usual, |size| usize::try_from(size.0).unwrap_or(usize::MAX))
        };
        let max_age = written
            .max_age
            .map_or(Duration::from_mins(5), |span| span.0);
        let (max_entry_bytes, max_bytes) = (
            bytes(written.max_entry_bytes, 64 << 10),
            bytes(written.max_bytes, 32 << 20),
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
        let spec = StaleSpec {
            mode: sections::mode(written.mode),
            max_age,
            max_entry_bytes,
            max_bytes,
            name: origin.state_name(backend),
            origin: origin.clone(),
        };
        (written.mode != ModeName::Off).then_some(spec)
    }

    pub(super) fn fault(&mut self, at: &At<'a>, written: &FaultInjection) -> Option<FaultSpec> {
        let share = |percent: Option<Percent>| percent.map_or(Ratio::ONE, Percent::ratio);
        if written.delay.is_none() && written.abort.is_none() {
            self.error(at, "this fault does nothing")
                .hint("add a `delay` or an `abort`");
        }
        if written
            .delay
            .as_ref()
            .is_some_and(|delay| delay.fixed_delay.0.is_zero())
        {
            self.error(&at.key("delay").key("fixedDelay"), "a delay has a length")
                .hint("write one like `200ms`");
        }
        let abort = written.abort.as_ref().and_then(|abort| {
            let at = at.key("abort");
            let answer = match (abort.http_status, abort.grpc_status) {
                (Some(status), None) => {
                    self.check_final_status(&at.key("httpStatus"), status);
                    FaultAnswer::Http(status)
                }
                (None, Some(code)) => FaultAnswer::Grpc(code.number()),
                _ => {
                    self.error(&at, "an abort has an `httpStatus` or a `grpcStatus`")
                        .hint("write one of the two, like `httpStatus: 503`");
                    return None;
                }
            };
            Some((answer, share(abort.percentage)))
        });
        let spec = FaultSpec {
            mode: sections::mode(written.mode),
            until: written.until.0,
            delay: written
                .delay
                .as_ref()
                .map(|delay| (delay.fixed_delay.0, share(delay.percentage))),
            abort,
            max_active: self
                .at_least_one(at, "maxActiveFaults", written.max_active_faults, 100)
                .get(),
        };
        (written.mode != ModeName::Off).then_some(spec)
    }

    fn check_final_status(&mut self, at: &At<'a>, status: u16) {
        if !(200..=599).contains(&status) {
            self.error(at, format!("{status} is not the status of an answer"))
                .hint("write a number from 200 to 599");
        }
    }
}
