//! Compiled policies for degraded operation: hedging, fallbacks, stale responses, fault
//! injection and mirroring.
//!
//! The types hold configuration only. They do not know the responses that are cached or the
//! latencies that are observed.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::HeaderValue;

use crate::{
    policy::{document::FallbackTrigger, snapshot::origin::SectionOrigin, units::StatusSet},
    resilience::{Mode, hedge::HedgeConfig, ratio::Ratio},
};

/// Configuration of hedging, which sends additional attempts while a response is late.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HedgingSpec {
    /// Whether hedges are sent, only logged, or off.
    pub mode: Mode,
    /// Maximum number of attempts, and the delay before each.
    pub config: HedgeConfig,
    /// HTTP statuses that are not used as the response while another attempt is in flight.
    pub non_fatal_codes: StatusSet,
    /// Name of the state; sections with the same name share the latency estimate.
    pub name: Arc<str>,
    /// Source of the section.
    pub origin: SectionOrigin,
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

/// Configuration of fault injection for a route.
#[derive(Debug, Clone, PartialEq)]
pub struct FaultInjectionSpec {
    /// Whether faults are injected, only logged, or off.
    pub mode: Mode,
    /// Time after which no faults are injected.
    pub until: SystemTime,
    /// Delay of requests, and the share of the requests that are delayed.
    pub delay: Option<(Duration, Ratio)>,
    /// Status that requests are aborted with, and the share of the requests that are aborted.
    pub abort: Option<(FaultAbortStatus, Ratio)>,
    /// Maximum number of concurrent requests with an injected fault.
    pub max_active_faults: u32,
}

/// Status with which an injected fault aborts a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultAbortStatus {
    /// HTTP status code of the response.
    Http(u16),
    /// gRPC status code; 0, which is success, does not occur.
    Grpc(u8),
}

impl fmt::Display for FaultAbortStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(status) => write!(f, "{status}"),
            Self::Grpc(status) => write!(f, "gRPC status {status}"),
        }
    }
}

/// Mirroring of requests: a backend receives copies, and its responses are discarded.
#[derive(Debug, Clone, PartialEq)]
pub struct MirrorSpec {
    /// Name of the backend that receives the copies.
    pub backend: Arc<str>,
    /// Share of the requests that are copied.
    pub share: Ratio,
}
