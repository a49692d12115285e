//! Retries: the failures and statuses that are retried, and the wait before a retry.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    policy::{
        grpc_code::GrpcCode,
        mode::ModeSetting,
        sections::{
            description::Description,
            origin::SectionOrigin,
            section::{FoundSection, Section, SectionContext},
        },
        units::{ByteSize, PolicyDuration, StatusRange, StatusSet, duration_or},
    },
    resilience::{
        Mode,
        backoff::Backoff,
        retry::{RetryConfig, RetryTriggers},
    },
};

/// Failures and statuses that are retried.
///
/// Without this section, only requests that the app did not process are retried, at most twice.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Retry {
    /// Whether requests are retried. Shadow only counts the retries that would be made. Off
    /// also disables retries of requests that the app did not process. Default Enforce.
    pub mode: ModeSetting,
    /// Maximum number of retries after the first attempt. Retries of requests that the app did
    /// not process do not count. Default 1.
    pub attempts: Option<u32>,
    /// Failures without a response that are retried. Default connect-failure, refused-stream,
    /// reset-before-request.
    pub retry_on: Option<Vec<RetryTrigger>>,
    /// HTTP statuses that are retried. For idempotent requests only, unless
    /// `retryNonIdempotent` is set. Default 502, 503, 504.
    pub codes: Option<Vec<StatusRange>>,
    /// gRPC statuses that are retried, if the response consists of the status alone
    /// (Trailers-Only). Default none. The sidecar cannot distinguish a call that failed at once
    /// from a call that was never executed. List only statuses that your services send before
    /// they execute a call. With `retryNonIdempotent` or an `idempotency-key` header, a call
    /// that fails after its head and before its first message is also retried. The sidecar
    /// delays the response head until the first message or the status arrives.
    pub grpc_codes: Option<Vec<GrpcCode>>,
    /// Base of the wait before a retry. The wait before retry n is random between 0 and
    /// `backoff * 2^(n-1)` (full jitter). Default 25ms.
    pub backoff: Option<PolicyDuration>,
    /// Maximum wait before a retry, at least `backoff`. Default ten times `backoff`.
    pub max_backoff: Option<PolicyDuration>,
    /// Whether requests that are not idempotent are retried although they may have been
    /// executed. GET, HEAD, OPTIONS, TRACE, PUT, DELETE, and requests with an `idempotency-key`
    /// header are idempotent. Default false.
    pub retry_non_idempotent: Option<bool>,
    /// Whether `retry-after` of a 429 or 503 response, or `grpc-retry-pushback-ms`, replaces
    /// the backoff, up to 5m. Default true.
    pub respect_retry_after: Option<bool>,
    /// Maximum size of a request body that is buffered for a retry. A larger body is forwarded,
    /// but the request cannot be retried. Default 64Ki.
    pub max_buffered_body: Option<ByteSize>,
}

/// Failure without a response that is retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RetryTrigger {
    /// No connection could be established, including TLS.
    ConnectFailure,
    /// The backend reports that it did not process the request, for example with a refused
    /// HTTP/2 stream.
    RefusedStream,
    /// The connection ended before a byte of the request was written.
    ResetBeforeRequest,
    /// The connection ended after the request was written and before a response. For idempotent
    /// requests only, unless `retryNonIdempotent` is set.
    Reset,
    /// No response arrived within `timeouts.backendRequest`. For idempotent requests only,
    /// unless `retryNonIdempotent` is set.
    Timeout,
}

/// Default base of the wait before a retry.
const DEFAULT_BACKOFF: Duration = Duration::from_millis(25);

/// Conditions and limits of retries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetrySpec {
    /// Whether retries are enforced, only logged, or off.
    pub mode: Mode,
    /// Number of retries, triggers and backoff.
    pub config: RetryConfig,
    /// HTTP statuses that are retried.
    pub codes: StatusSet,
    /// gRPC statuses that are retried, as a bit mask: bit `n` is status `n`.
    pub grpc_codes: u32,
    /// Maximum size of a request body that is buffered for a retry, in bytes.
    pub max_buffered_body_bytes: usize,
    /// Source of the section.
    pub origin: SectionOrigin,
}

impl Section for Retry {
    const KEY: &'static str = "retry";
    type Spec = RetrySpec;

    /// Compiles retries. Without a section, only attempts that never reached the app are
    /// repeated.
    ///
    /// Such retries are harmless, and they hide the race between a request and a closed
    /// keep-alive connection.
    fn compile(
        found: Option<FoundSection<'_, Self>>,
        context: &mut SectionContext<'_>,
    ) -> RetrySpec {
        let Some(found) = found else {
            let section = Self {
                attempts: Some(0),
                codes: Some(Vec::new()),
                ..Self::default()
            };
            let backoff = Backoff::try_new(DEFAULT_BACKOFF, DEFAULT_BACKOFF * 10)
                .expect("the default bounds are in order");
            return section.to_spec(backoff, SectionOrigin::BuiltIn);
        };
        let section = found.section;
        section.check_total_time(&found, context);
        let base = duration_or(section.backoff, DEFAULT_BACKOFF);
        let max = duration_or(section.max_backoff, base.saturating_mul(10));
        let backoff = Backoff::try_new(base, max).unwrap_or_else(|invalid| {
            context
                .report
                .error(&found.at.key("maxBackoff"), invalid.to_string())
                .hint("write a `maxBackoff` of at least `backoff`");
            Backoff::try_new(base, base).expect("equal bounds are in order")
        });
        section.to_spec(backoff, found.origin)
    }

    fn describe(spec: &RetrySpec) -> Vec<Description> {
        let RetryConfig {
            attempts,
            triggers,
            backoff,
            retry_non_idempotent,
            respect_retry_after,
        } = spec.config;
        let grpc_codes = GrpcCode::ALL
            .iter()
            .filter(|code| spec.grpc_codes >> code.number() & 1 == 1);
        let description = Description::default()
            .with("mode", spec.mode.name())
            .with("attempts", attempts)
            .with("retryOn", format_args!("[{triggers}]"))
            .with("codes", format_args!("[{}]", spec.codes))
            .with_list("grpcCodes", grpc_codes)
            .with("backoff", PolicyDuration(backoff.max_wait(1)))
            .with("maxBackoff", PolicyDuration(backoff.max_wait(u32::MAX)))
            .with("retryNonIdempotent", retry_non_idempotent)
            .with("respectRetryAfter", respect_retry_after)
            .with("maxBufferedBody", spec.max_buffered_body_bytes)
            .with_origin(&spec.origin);
        vec![description]
    }
}

impl Retry {
    fn to_spec(&self, backoff: Backoff, origin: SectionOrigin) -> RetrySpec {
        let default_triggers = [
            RetryTrigger::ConnectFailure,
            RetryTrigger::RefusedStream,
            RetryTrigger::ResetBeforeRequest,
        ];
        let triggers = self.retry_on.as_deref().unwrap_or(&default_triggers);
        let default_codes = [StatusRange::from_bounds(502, 504)];
        RetrySpec {
            mode: self.mode.mode(),
            config: RetryConfig {
                attempts: self.attempts.unwrap_or(1),
                triggers: RetryTriggers {
                    connect_failure: triggers.contains(&RetryTrigger::ConnectFailure),
                    refused_stream: triggers.contains(&RetryTrigger::RefusedStream),
                    reset_before_request: triggers.contains(&RetryTrigger::ResetBeforeRequest),
                    reset: triggers.contains(&RetryTrigger::Reset),
                    timeout: triggers.contains(&RetryTrigger::Timeout),
                },
                backoff,
                retry_non_idempotent: self.retry_non_idempotent.unwrap_or(false),
                respect_retry_after: self.respect_retry_after.unwrap_or(true),
            },
            codes: self
                .codes
                .as_deref()
                .unwrap_or(&default_codes)
                .iter()
                .collect(),
            grpc_codes: self
                .grpc_codes
                .iter()
                .flatten()
                .fold(0, |set, code| set | 1 << code.number()),
            max_buffered_body_bytes: self.max_buffered_body.map_or(64 << 10, ByteSize::as_usize),
            origin,
        }
    }

    /// Warns about attempts that do not fit into the timeout of the request.
    fn check_total_time(&self, found: &FoundSection<'_, Self>, context: &mut SectionContext<'_>) {
        let (Some(attempts), Some(request_timeout), Some(attempt_timeout)) = (
            self.attempts,
            context.request_timeout,
            context.attempt_timeout,
        ) else {
            return;
        };
        let all_attempts = attempts.saturating_add(1);
        if self.mode == ModeSetting::Off
            || attempt_timeout.saturating_mul(all_attempts) <= request_timeout
        {
            return;
        }
        let message = format!(
            "{all_attempts} attempts of {} do not fit into the request timeout of {}",
            PolicyDuration(attempt_timeout),
            PolicyDuration(request_timeout)
        );
        context
            .report
            .warning(&found.at.key("attempts"), message)
            .hint("lower `attempts` or `timeouts.backendRequest`, or raise `timeouts.request`");
    }
}
