//! The protection of the instance.

use super::{At, Compiler, sections};
use crate::{
    policy::{
        document::{ModeName, SignalLevels},
        snapshot::ProtectionSpec,
        units::Percent,
    },
    resilience::{
        ratio::Ratio,
        shed::{Levels, ProtectionConfig},
    },
};

impl<'a> Compiler<'a> {
    pub(super) fn protection(&mut self) -> Option<ProtectionSpec> {
        let (at, written) =
            self.at_most_one("protection", |document| document.spec.protection.as_ref())?;
        let signals = &written.signals;
        let signals_at = at.key("signals");
        let usual = |warning, critical| {
            Some(Levels {
                warning: Some(Percent::of(warning).ratio()),
                critical: Some(Percent::of(critical).ratio()),
            })
        };
        let config = ProtectionConfig {
            cpu: signals.cpu.as_ref().map_or(usual(70, 90), |levels| {
                self.levels(&signals_at.key("cpu"), levels)
            }),
            memory: signals.memory.as_ref().map_or(usual(75, 90), |levels| {
                self.levels(&signals_at.key("memory"), levels)
            }),
            cpu_pressure: signals
                .cpu_pressure
                .as_ref()
                .and_then(|levels| self.levels(&signals_at.key("cpuPressure"), levels)),
            memory_pressure: signals
                .memory_pressure
                .as_ref()
                .and_then(|levels| self.levels(&signals_at.key("memoryPressure"), levels)),
        };
        let shed_at = at.key("shed");
        let shed = written.shed.clone().unwrap_or_default();
        let header = self.header_name(
            &shed_at.key("header"),
            shed.header.as_deref().unwrap_or("x-outrigger-priority"),
        )?;
        let usual = || {
            ["critical", "high", "normal", "low"]
                .map(str::to_owned)
                .to_vec()
        };
        let classes = shed.classes.unwrap_or_else(usual);
        let is_twice = classes
            .iter()
            .enumerate()
            .any(|(index, class)| classes[..index].contains(class));
        let classes: Result<[String; 4], _> = classes.try_into();
        let Ok(classes) = classes
            .map_err(drop)
            .and_then(|classes| if is_twice { Err(()) } else { Ok(classes) })
        else {
            self.error(&shed_at.key("classes"), "there are four classes, each once")
                .hint("write them highest first, like `[critical, high, normal, low]`");
            return None;
        };
        (written.mode != ModeName::Off).then(|| ProtectionSpec {
            mode: sections::mode(written.mode),
            config,
            header,
            classes,
            limits_classes: written.shed.is_some(),
        })
    }

    /// Levels that are written; a signal without any is not watched.
    fn levels(&mut self, at: &At<'a>, written: &SignalLevels) -> Option<Levels> {
        let (warning, critical) = (
            written.warning.map(Percent::ratio),
            written.critical.map(Percent::ratio),
        );
        if let (Some(warning), Some(critical)) = (warning, critical)
            && critical < warning
        {
            self.error(&at.key("critical"), "`critical` comes before `warning`")
                .hint("write a `critical` of at least `warning`");
        }
        if [warning, critical].contains(&Some(Ratio::ZERO)) {
            self.error(at, "a level of 0 is always reached")
                .hint("write a percentage above 0, or take it out");
        }
        (warning.is_some() || critical.is_some()).then_some(Levels { warning, critical })
    }
}
