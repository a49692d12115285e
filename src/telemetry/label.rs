//! Decides which closed enums are metric labels, and keeps one counter per label value.
//!
//! A label value always comes from a closed enum, so the number of series is known at compile time.
//! A counter is found by the position of the value in its enum, not by a hand-numbered index. The
//! module does not know which metric uses a label.

use std::{marker::PhantomData, sync::OnceLock};

use metrics::Counter;

use crate::resilience::{
    breaker::StateKind,
    health::Health,
    memory_pressure::MemoryLevel,
    outlier::EjectionCause,
    retry::RetryStopReason,
    shed::{OverloadLevel, OverloadSignal},
};

/// Value of a closed enum with one lower-case token for labels, admin views and the log.
pub trait Label: Copy {
    /// Returns the token of the value, such as `half_open`.
    fn label(self) -> &'static str;
}

/// Fieldless enum whose values can be counted separately.
pub trait CountedLabel: Label + 'static {
    /// Every value, in the order of declaration.
    const ALL: &'static [Self];

    /// Returns the position of the value in [`CountedLabel::ALL`].
    fn index(self) -> usize;
}

/// Declares a fieldless enum together with the label of each value.
macro_rules! counted_labels {
    (
        $(#[$outer:meta])*
        $name:ident { $($(#[$inner:meta])* $variant:ident = $label:literal,)+ }
    ) => {
        $(#[$outer])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$inner])* $variant,)+
        }

        impl $crate::telemetry::label::Label for $name {
            fn label(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)+
                }
            }
        }

        impl $crate::telemetry::label::CountedLabel for $name {
            const ALL: &'static [Self] = &[$(Self::$variant,)+];

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}
pub(super) use counted_labels;

/// One counter per value of `E`. All are registered when the set is created, so each starts at
/// zero.
#[derive(Debug)]
pub struct LabelledCounters<E> {
    counters: Box<[Counter]>,
    value: PhantomData<fn(E)>,
}

impl<E: CountedLabel> LabelledCounters<E> {
    /// Registers one counter per value; `register` receives the label.
    pub fn new(register: impl Fn(&'static str) -> Counter) -> Self {
        Self {
            counters: E::ALL.iter().map(|value| register(value.label())).collect(),
            value: PhantomData,
        }
    }

    /// Counts one occurrence of `value`.
    pub fn increment(&self, value: E) {
        self.counters[value.index()].increment(1);
    }
}

/// One counter per value of `E`, each registered at its first occurrence. It suits an enum of which
/// most values never occur.
#[derive(Debug)]
pub struct LazyLabelledCounters<E> {
    counters: Box<[OnceLock<Counter>]>,
    value: PhantomData<fn(E)>,
}

impl<E: CountedLabel> Default for LazyLabelledCounters<E> {
    fn default() -> Self {
        Self {
            counters: E::ALL.iter().map(|_| OnceLock::new()).collect(),
            value: PhantomData,
        }
    }
}

impl<E: CountedLabel> LazyLabelledCounters<E> {
    /// Counts one occurrence of `value`. At the first one, `register` receives the label.
    pub fn increment(&self, value: E, register: impl FnOnce(&'static str) -> Counter) {
        self.counters[value.index()]
            .get_or_init(|| register(value.label()))
            .increment(1);
    }
}

impl Label for StateKind {
    fn label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::ForcedOpen => "forced_open",
            Self::Disabled => "disabled",
        }
    }
}

impl Label for OverloadSignal {
    fn label(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::CpuPressure => "cpu_pressure",
            Self::MemoryPressure => "memory_pressure",
        }
    }
}

impl Label for OverloadLevel {
    fn label(self) -> &'static str {
        match self {
            Self::Normal => "calm",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

impl Label for MemoryLevel {
    fn label(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Elevated => "elevated",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

impl Label for Health {
    fn label(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

impl Label for EjectionCause {
    fn label(self) -> &'static str {
        match self {
            Self::Consecutive5xx(_) => "consecutive_5xx",
            Self::ConsecutiveGatewayErrors(_) => "consecutive_gateway_errors",
            Self::ConsecutiveLocalOriginFailures(_) => "consecutive_local_origin_failures",
            Self::SuccessRate { .. } => "success_rate",
            Self::FailurePercentage { .. } => "failure_percentage",
            Self::HighLatency { .. } => "slow",
            Self::FailedProbe => "probe",
            Self::SlowProbe { .. } => "slow_probe",
        }
    }
}

impl Label for RetryStopReason {
    fn label(self) -> &'static str {
        match self {
            Self::NotTriggered => "not_triggered",
            Self::NotIdempotent => "not_idempotent",
            Self::RetriedByDownstream => "already_retried",
            Self::BodyNotReplayable => "body_not_replayable",
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::NoTimeLeft => "no_time_left",
            Self::BudgetExhausted => "budget_spent",
            Self::TooManyInFlight => "too_many_in_flight",
            Self::BreakerOpen => "breaker_open",
            Self::Shadow => "shadow",
        }
    }
}

impl CountedLabel for RetryStopReason {
    const ALL: &'static [Self] = &Self::ALL;

    fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests;
