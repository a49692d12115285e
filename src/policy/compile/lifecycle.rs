//! Compiles startup, readiness, warm-up and drain of this instance.
//!
//! It resolves the backends that readiness depends on, and requires an active check of each. It
//! also checks that the durations of the drain are consistent.

use std::{sync::Arc, time::Duration};

use crate::{
    policy::{
        compile::{backends::CompiledBackend, compiler::Compiler},
        document::{AppProbesSection, DrainSection, InstanceWarmUp, LifecycleSection, Startup},
        report::FieldLocation,
        snapshot::{AppProbesSpec, InstanceWarmUpSpec, LifecycleSpec},
        units::duration_or,
    },
    resilience::{Mode, lifecycle::DrainConfig},
};

type CompiledBackends<'b, 'a> = &'b [(FieldLocation<'a>, CompiledBackend<'a>)];

impl<'a> Compiler<'a> {
    pub(super) fn compile_lifecycle(
        &mut self,
        backends: CompiledBackends<'_, 'a>,
    ) -> LifecycleSpec {
        let Some((at, section)) =
            self.find_single_section("lifecycle", |document| document.spec.lifecycle.as_ref())
        else {
            return LifecycleSpec {
                success_threshold: 1,
                ..LifecycleSpec::default()
            };
        };
        let LifecycleSection {
            startup,
            readiness_gates,
            app_probes,
            warm_up,
            drain,
            replicas,
        } = section.clone();
        let startup = startup.unwrap_or_default();
        let startup_at = at.key("startup");
        let require_backend = startup.require_backend.as_deref().and_then(|name| {
            self.find_checked_backend(&startup_at.key("requireBackend"), name, backends)
        });
        let success_threshold = self.compile_success_threshold(&startup_at, &startup);
        let gates = readiness_gates.unwrap_or_default();
        let gates = gates
            .iter()
            .enumerate()
            .filter_map(|(index, name)| {
                self.find_checked_backend(&at.key("readinessGates").index(index), name, backends)
            })
            .collect();
        let replicas = replicas.and_then(|replicas| {
            self.find_backend(
                &at.key("replicas").key("backend"),
                &replicas.backend,
                backends,
            )
        });
        LifecycleSpec {
            required_backend: require_backend,
            startup_delay: duration_or(startup.delay, Duration::ZERO),
            success_threshold,
            readiness_gates: gates,
            app_probes: self.compile_app_probes(
                &at.key("appProbes"),
                app_probes.as_ref(),
                require_backend,
                backends,
            ),
            warm_up: warm_up
                .and_then(|warm_up| self.compile_instance_warm_up(&at.key("warmUp"), &warm_up)),
            drain: self.compile_drain(&at.key("drain"), &drain.unwrap_or_default()),
            replicas_backend: replicas,
        }
    }

    pub(super) fn find_backend(
        &mut self,
        at: &FieldLocation<'_>,
        name: &str,
        backends: CompiledBackends<'_, 'a>,
    ) -> Option<usize> {
        let names = || backends.iter().map(|(_, backend)| &*backend.spec.name);
        let position = names().position(|known| known == name);
        if position.is_none() {
            self.report
                .report_unknown_reference(at, "backend", name, names());
        }
        position
    }

    /// Returns the index of a backend that readiness depends on; it must have an active check.
    fn find_checked_backend(
        &mut self,
        at: &FieldLocation<'_>,
        name: &str,
        backends: CompiledBackends<'_, 'a>,
    ) -> Option<usize> {
        let position = self.find_backend(at, name, backends)?;
        if backends[position].1.spec.active_check.is_none() {
            let hint = "add `healthCheck.active` to the backend";
            self.report
                .error(at, format!("the backend `{name}` has no active check"))
                .hint(hint);
        }
        Some(position)
    }

    fn compile_success_threshold(&mut self, at: &FieldLocation<'_>, startup: &Startup) -> u32 {
        if startup.require_backend.is_none() {
            let given = [
                ("delay", startup.delay.is_some()),
                ("successThreshold", startup.success_threshold.is_some()),
            ];
            for (key, _) in given.into_iter().filter(|(_, is_given)| *is_given) {
                self.report
                    .error(
                        &at.key(key),
                        format!("`{key}` needs a check of a required backend, and there is none"),
                    )
                    .hint("add `requireBackend`");
            }
        }
        self.report
            .require_at_least_one(at, "successThreshold", startup.success_threshold, 1)
            .get()
    }

    /// Compiles the paths of the app's probes. The default is the path of the active check.
    ///
    /// Without a path and without an HTTP check, the probe is not available.
    fn compile_app_probes(
        &mut self,
        at: &FieldLocation<'_>,
        section: Option<&AppProbesSection>,
        backend: Option<usize>,
        backends: CompiledBackends<'_, 'a>,
    ) -> Option<AppProbesSpec> {
        let Some(backend) = backend else {
            if section.is_some() {
                self.report
                    .error(at, "it is unknown which backend is the app")
                    .hint("add `startup: {requireBackend: NAME}`");
            }
            return None;
        };
        let section = section.cloned().unwrap_or_default();
        let active_check_path = backends[backend]
            .1
            .spec
            .active_check
            .as_ref()
            .and_then(|check| check.path());
        let mut path = |key: &str, given: Option<String>| {
            let path = given.or_else(|| active_check_path.map(str::to_owned))?;
            if !path.starts_with('/')
                || path
                    .bytes()
                    .any(|byte| byte.is_ascii_whitespace() || byte.is_ascii_control())
            {
                self.report
                    .error(&at.key(key), format!("`{path}` is not a path"))
                    .hint("write `/healthz`");
            }
            Some(Arc::from(path))
        };
        Some(AppProbesSpec {
            backend,
            livez_path: path("livez", section.livez),
            readyz_path: path("readyz", section.readyz),
            startupz_path: path("startupz", section.startupz),
        })
    }

    fn compile_instance_warm_up(
        &mut self,
        at: &FieldLocation<'_>,
        section: &InstanceWarmUp,
    ) -> Option<InstanceWarmUpSpec> {
        let mode = section.mode.mode();
        let made = self.compile_warm_up_config(
            at,
            section.window,
            section.aggression,
            (section.min_percent, "minPercent"),
        );
        made.filter(|_| mode != Mode::Off)
            .map(|config| InstanceWarmUpSpec { mode, config })
    }

    fn compile_drain(&mut self, at: &FieldLocation<'_>, section: &DrainSection) -> DrainConfig {
        let defaults = DrainConfig::default();
        let timeout = duration_or(section.timeout, defaults.timeout);
        let drain = DrainConfig {
            delay: duration_or(section.delay, defaults.delay),
            quiet_period: duration_or(section.quiet_period, defaults.quiet_period),
            soft_timeout: duration_or(section.soft_timeout, defaults.soft_timeout.min(timeout)),
            timeout,
        };
        if drain.timeout < drain.delay {
            self.report
                .error(&at.key("timeout"), "`timeout` is before the end of `delay`")
                .hint("write a `timeout` of at least `delay`");
        }
        if drain.timeout < drain.soft_timeout {
            self.report
                .error(
                    &at.key("softTimeout"),
                    "`softTimeout` is after the end of the drain",
                )
                .hint("write a `softTimeout` of at most `timeout`");
        }
        drain
    }
}
