//! Compiles admission control: its window, success rate threshold and maximum rejection.
//!
//! It decides the defaults and rejects values with which the control could never act. It does
//! not know the observed success rate.

use std::time::Duration;

use crate::{
    policy::{
        compile::{
            compiler::Compiler,
            sections::{self, ResolvedSection},
        },
        document::{AdmissionControlSection, ModeSetting},
        snapshot::AdmissionControlSpec,
        units::Percent,
    },
    resilience::{admission::AdmissionConfig, ratio::Ratio},
};

impl<'a> Compiler<'a> {
    pub(super) fn compile_admission_control(
        &mut self,
        found: &ResolvedSection<'_, 'a, AdmissionControlSection>,
        backend: &str,
    ) -> Option<AdmissionControlSpec> {
        let ResolvedSection {
            origin,
            at,
            section,
        } = found;
        let window = section
            .sampling_window
            .map_or(Duration::from_secs(30), |span| span.0);
        let min_success_rate = section.min_success_rate.unwrap_or(Percent(95.0)).ratio();
        let aggression = section.rejection_aggression.unwrap_or(1.0);
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
            min_request_rate: section.min_request_rate.unwrap_or(5),
            max_rejection: section
                .max_rejection_percent
                .unwrap_or(Percent(80.0))
                .ratio(),
        };
        let spec = AdmissionControlSpec {
            mode: sections::compile_mode(section.mode),
            config,
            name: origin.state_name(backend),
            origin: origin.clone(),
        };
        (section.mode != ModeSetting::Off).then_some(spec)
    }
}
