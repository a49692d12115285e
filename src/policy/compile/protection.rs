//! Compiles overload protection: signal thresholds and priority classes.
//!
//! It decides the default thresholds and the default classes. It does not know whether the
//! system provides the signals.

use crate::{
    policy::{
        compile::compiler::Compiler,
        document::{ModeSetting, SignalLevels},
        report::FieldLocation,
        snapshot::ProtectionSpec,
        units::Percent,
    },
    resilience::{
        ratio::Ratio,
        shed::{ProtectionConfig, SignalThresholds},
    },
};

impl<'a> Compiler<'a> {
    pub(super) fn compile_protection(&mut self) -> Option<ProtectionSpec> {
        let (at, section) =
            self.find_single_section("protection", |document| document.spec.protection.as_ref())?;
        let signals = &section.signals;
        let signals_at = at.key("signals");
        let defaults = |warning, critical| {
            Some(SignalThresholds {
                warning: Some(Percent::from_integer(warning).ratio()),
                critical: Some(Percent::from_integer(critical).ratio()),
            })
        };
        let config = ProtectionConfig {
            cpu: signals.cpu.as_ref().map_or(defaults(70, 90), |levels| {
                self.compile_signal_levels(&signals_at.key("cpu"), levels)
            }),
            memory: signals.memory.as_ref().map_or(defaults(75, 90), |levels| {
                self.compile_signal_levels(&signals_at.key("memory"), levels)
            }),
            cpu_pressure: signals.cpu_pressure.as_ref().and_then(|levels| {
                self.compile_signal_levels(&signals_at.key("cpuPressure"), levels)
            }),
            memory_pressure: signals.memory_pressure.as_ref().and_then(|levels| {
                self.compile_signal_levels(&signals_at.key("memoryPressure"), levels)
            }),
        };
        let shed_at = at.key("shed");
        let shed = section.shed.clone().unwrap_or_default();
        let header = self.report.parse_header_name(
            &shed_at.key("header"),
            shed.header.as_deref().unwrap_or("x-outrigger-priority"),
        )?;
        let defaults = || {
            ["critical", "high", "normal", "low"]
                .map(str::to_owned)
                .to_vec()
        };
        let classes = shed.classes.unwrap_or_else(defaults);
        let has_duplicate_class = classes
            .iter()
            .enumerate()
            .any(|(index, class)| classes[..index].contains(class));
        let classes: Result<[String; 4], _> = classes.try_into();
        let Some(classes) = classes.ok().filter(|_| !has_duplicate_class) else {
            self.report
                .error(
                    &shed_at.key("classes"),
                    "`classes` must name four different classes",
                )
                .hint("write them highest first, like `[critical, high, normal, low]`");
            return None;
        };
        (section.mode != ModeSetting::Off).then(|| ProtectionSpec {
            mode: section.mode.mode(),
            config,
            priority_header: header,
            priority_classes: classes,
            limits_concurrency_by_class: section.shed.is_some(),
        })
    }

    /// Compiles the thresholds of a signal; a signal without thresholds is not monitored.
    fn compile_signal_levels(
        &mut self,
        at: &FieldLocation<'_>,
        section: &SignalLevels,
    ) -> Option<SignalThresholds> {
        let (warning, critical) = (
            section.warning.map(Percent::ratio),
            section.critical.map(Percent::ratio),
        );
        if let (Some(warning), Some(critical)) = (warning, critical)
            && critical < warning
        {
            self.report
                .error(&at.key("critical"), "`critical` comes before `warning`")
                .hint("write a `critical` of at least `warning`");
        }
        if [warning, critical].contains(&Some(Ratio::ZERO)) {
            self.report
                .error(at, "a level of 0 is always reached")
                .hint("write a percentage above 0, or remove the field");
        }
        (warning.is_some() || critical.is_some()).then_some(SignalThresholds { warning, critical })
    }
}
