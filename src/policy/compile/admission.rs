//! Admission control.

use std::time::Duration;

use super::{
    Compiler,
    sections::{self, Found},
};
use crate::{
    policy::{
        document::{AdmissionControl, ModeName},
        snapshot::AdmissionSpec,
        units::Percent,
    },
    resilience::{admission::AdmissionConfig, ratio::Ratio},
};

impl<'a> Compiler<'a> {
    pub(super) fn admission(
        &mut self,
        found: &Found<'_, 'a, AdmissionControl>,
        backend: &str,
    ) -> Option<AdmissionSpec> {
        let Found {
            origin,
            at,
            section: written,
        } = found;
        let window = written
            .sampling_window
            .map_or(Duration::from_secs(30), |span| span.0);
        let min_success_rate = written.min_success_rate.unwrap_or(Percent(95.0)).ratio();
        let aggression = written.rejection_aggression.unwrap_or(1.0);
        if window < Duration::from_secs(1) {
            self.error(
                &at.key("samplingWindow"),
                "fewer attempts than a second has prove nothing",
            )
            .hint("30s is the default");
        }
        if min_success_rate <= Ratio::ZERO {
            self.error(&at.key("minSuccessRate"), "nothing would ever be refused")
                .hint("95 is the default; `mode: Off` switches it off");
        }
        if !(aggression.is_finite() && aggression > 0.0) {
            self.error(&at.key("rejectionAggression"), "this is a number above 0")
                .hint("1 is the default");
        }
        let config = AdmissionConfig {
            window: window.max(Duration::from_secs(1)),
            min_success_rate,
            aggression,
            min_request_rate: written.min_request_rate.unwrap_or(5),
            max_rejection: written
                .max_rejection_percent
                .unwrap_or(Percent(80.0))
                .ratio(),
        };
        let spec = AdmissionSpec {
            mode: sections::mode(written.mode),
            config,
            name: origin.state_name(backend),
            origin: origin.clone(),
        };
        (written.mode != ModeName::Off).then_some(spec)
    }
}
