//! The ramp of admitted calls after a breaker has closed.

use std::time::{Duration, Instant};

use crate::resilience::ratio::Ratio;

/// State of the recovery ramp after closing.
///
/// `credit` accumulates the admitted share of each call until it reaches one whole call.
#[derive(Debug, Clone, Copy)]
pub(super) struct RecoveryRamp {
    started_at: Instant,
    credit: f64,
}

/// Decision of the ramp on one call.
pub(super) enum RampDecision {
    Admitted,
    Rejected,
    /// The ramp has ended; this call and all later ones are admitted.
    Finished,
}

impl RecoveryRamp {
    /// Starts the ramp at the moment of closing. The first call is admitted.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            started_at: now,
            credit: 1.0,
        }
    }

    pub(super) fn admitted_ratio(self, span: Duration, now: Instant) -> Ratio {
        let elapsed = now.saturating_duration_since(self.started_at);
        if elapsed >= span {
            return Ratio::ONE;
        }
        Ratio::from_percent(100.0 * elapsed.as_secs_f64() / span.as_secs_f64())
            .unwrap_or(Ratio::ONE)
    }

    /// Adds the admitted share of the moment to the credit, and spends one whole credit per
    /// admitted call.
    pub(super) fn admit(&mut self, span: Duration, now: Instant) -> RampDecision {
        let share = self.admitted_ratio(span, now);
        if share >= Ratio::ONE {
            return RampDecision::Finished;
        }
        self.credit += share.value();
        if self.credit < 1.0 {
            return RampDecision::Rejected;
        }
        self.credit -= 1.0;
        RampDecision::Admitted
    }
}
