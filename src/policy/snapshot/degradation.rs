//! What is done when an answer is late, and what is answered when the backend cannot.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::HeaderValue;

use crate::{
    policy::{document::FallbackTrigger, snapshot::SectionOrigin, units::StatusSet},
    resilience::{Mode, hedge::HedgeConfig, ratio::Ratio},
};

/// Further requests for an answer that is late.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HedgingSpec {
    /// Whether it acts.
    pub mode: Mode,
    /// How many, and when.
    pub config: HedgeConfig,
    /// Statuses that are no answer while there is another to be had.
    pub non_fatal_codes: StatusSet,
    /// The name of its state.
    pub name: Arc<str>,
    /// Where the section is from.
    pub origin: SectionOrigin,
}

/// What is answered instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FallbackSpec {
    /// Whether it acts.
    pub mode: Mode,
    /// What makes it act.
    pub triggers: Vec<FallbackTrigger>,
    /// What it is.
    pub action: FallbackAction,
    /// Where the section is from.
    pub origin: SectionOrigin,
}

/// What is answered instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FallbackAction {
    /// This.
    Response {
        /// The status.
        status: u16,
        /// The media type.
        content_type: HeaderValue,
        /// The body.
        body: Bytes,
    },
    /// What this backend says.
    Backend(Arc<str>),
}

/// Answers that are given again when the backend fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaleIfErrorSpec {
    /// Whether it acts.
    pub mode: Mode,
    /// The longest time since an answer came.
    pub max_age: Duration,
    /// The longest body that is kept.
    pub max_entry_bytes: usize,
    /// All that is kept.
    pub max_bytes: usize,
    /// The name of its state.
    pub name: Arc<str>,
    /// Where the section is from.
    pub origin: SectionOrigin,
}

/// Faults on purpose.
#[derive(Debug, Clone, PartialEq)]
pub struct FaultInjectionSpec {
    /// Whether it acts.
    pub mode: Mode,
    /// When it ends.
    pub until: SystemTime,
    /// How long requests are kept waiting, and how many of them.
    pub delay: Option<(Duration, Ratio)>,
    /// What requests are answered with, and how many of them.
    pub abort: Option<(FaultAbortStatus, Ratio)>,
    /// Requests under a fault at once.
    pub max_active_faults: u32,
}

/// An error on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultAbortStatus {
    /// A status.
    Http(u16),
    /// A status of gRPC.
    Grpc(u8),
}

/// A copy of some requests for another backend.
#[derive(Debug, Clone, PartialEq)]
pub struct MirrorSpec {
    /// The backend.
    pub backend: Arc<str>,
    /// How many of them.
    pub share: Ratio,
}
