//! How the instance comes and goes.

use std::{sync::Arc, time::Duration};

use super::{At, Compiler, backends::MadeBackend, sections};
use crate::{
    policy::{
        document::{AppProbes, Drain, Lifecycle, Startup, WarmUp},
        snapshot::{AppProbesSpec, LifecycleSpec, OwnWarmUpSpec},
        units::Span,
    },
    resilience::{Mode, lifecycle::DrainConfig},
};

type Backends<'b, 'a> = &'b [(At<'a>, MadeBackend<'a>)];

impl<'a> Compiler<'a> {
    pub(super) fn lifecycle(&mut self, backends: Backends<'_, 'a>) -> LifecycleSpec {
        let Some((at, written)) =
            self.at_most_one("lifecycle", |document| document.spec.lifecycle.as_ref())
        else {
            return LifecycleSpec {
                success_threshold: 1,
                ..LifecycleSpec::default()
            };
        };
        let Lifecycle {
            startup,
            readiness_gates,
            app_probes,
            warm_up,
            drain,
            replicas,
        } = written.clone();
        let startup = startup.unwrap_or_default();
        let startup_at = at.key("startup");
        let require_backend = startup.require_backend.as_deref().and_then(|name| {
            self.checked_backend(&startup_at.key("requireBackend"), name, backends)
        });
        let success_threshold = self.startup(&startup_at, &startup);
        let gates = readiness_gates.unwrap_or_default();
        let gates = gates
            .iter()
            .enumerate()
            .filter_map(|(index, name)| {
                self.checked_backend(&at.key("readinessGates").index(index), name, backends)
            })
            .collect();
        let replicas = replicas.and_then(|replicas| {
            self.backend_named(
                &at.key("replicas").key("backend"),
                &replicas.backend,
                backends,
            )
        });
        LifecycleSpec {
            require_backend,
            startup_delay: or(startup.delay, Duration::ZERO),
            success_threshold,
            gates,
            app_probes: self.app_probes(
                &at.key("appProbes"),
                app_probes.as_ref(),
                require_backend,
                backends,
            ),
            warm_up: warm_up.and_then(|warm_up| self.own_warm_up(&at.key("warmUp"), &warm_up)),
            drain: self.drain(&at.key("drain"), &drain.unwrap_or_default()),
            replicas,
        }
    }

    fn backend_named(
        &mut self,
        at: &At<'a>,
        name: &str,
        backends: Backends<'_, 'a>,
    ) -> Option<usize> {
        let names = || backends.iter().map(|(_, backend)| &*backend.spec.name);
        let position = names().position(|known| known == name);
        if position.is_none() {
            self.unknown_reference(at, "backend", name, names());
        }
        position
    }

    /// A backend that readiness waits for.
    fn checked_backend(
        &mut self,
        at: &At<'a>,
        name: &str,
        backends: Backends<'_, 'a>,
    ) -> Option<usize> {
        let position = self.backend_named(at, name, backends)?;
        if backends[position].1.spec.check.is_none() {
            let hint = "give it a `healthCheck.active`, so that there is something to wait for";
            self.error(at, format!("the backend `{name}` has no active check"))
                .hint(hint);
        }
        Some(position)
    }

    fn startup(&mut self, at: &At<'a>, startup: &Startup) -> u32 {
        if startup.require_backend.is_none() {
            let given = [
                ("delay", startup.delay.is_some()),
                ("successThreshold", startup.success_threshold.is_some()),
            ];
            for (key, _) in given.into_iter().filter(|(_, is_given)| *is_given) {
                self.error(
                    &at.key(key),
                    format!(
                        "`{key}` counts from the check of a required backend, and none is given"
                    ),
                )
                .hint("add `requireBackend`");
            }
        }
        self.at_least_one(at, "successThreshold", startup.success_threshold, 1)
            .get()
    }

    /// What is not given is the path of the active check; where that is none of HTTP, nothing can be passed through.
    fn app_probes(
        &mut self,
        at: &At<'a>,
        written: Option<&AppProbes>,
        backend: Option<usize>,
        backends: Backends<'_, 'a>,
    ) -> Option<AppProbesSpec> {
        let Some(backend) = backend else {
            if written.is_some() {
                self.error(at, "nobody knows which backend is the app")
                    .hint("add `startup: {requireBackend: NAME}`");
            }
            return None;
        };
        let written = written.cloned().unwrap_or_default();
        let checked = backends[backend]
            .1
            .spec
            .check
            .as_ref()
            .and_then(|check| check.path());
        let mut path = |key: &str, given: Option<String>| {
            let path = given.or_else(|| checked.map(str::to_owned))?;
            if !path.starts_with('/')
                || path
                    .bytes()
                    .any(|byte| byte.is_ascii_whitespace() || byte.is_ascii_control())
            {
                self.error(&at.key(key), format!("`{path}` is not a path"))
                    .hint("write `/healthz`");
            }
            Some(Arc::from(path))
        };
        Some(AppProbesSpec {
            backend,
            livez: path("livez", written.livez),
            readyz: path("readyz", written.readyz),
            startupz: path("startupz", written.startupz),
        })
    }

    fn own_warm_up(&mut self, at: &At<'a>, written: &WarmUp) -> Option<OwnWarmUpSpec> {
        let mode = sections::mode(written.mode);
        let made = self.warm_up_curve(
            at,
            written.window,
            written.aggression,
            (written.min_percent, "minPercent"),
        );
        made.filter(|_| mode != Mode::Off)
            .map(|config| OwnWarmUpSpec { mode, config })
    }

    fn drain(&mut self, at: &At<'a>, written: &Drain) -> DrainConfig {
        let usual = DrainConfig::default();
        let timeout = or(written.timeout, usual.timeout);
        let drain = DrainConfig {
            delay: or(written.delay, usual.delay),
            quiet_period: or(written.quiet_period, usual.quiet_period),
            soft_timeout: or(written.soft_timeout, usual.soft_timeout.min(timeout)),
            timeout,
        };
        if drain.timeout < drain.delay {
            self.error(
                &at.key("timeout"),
                "the drain would be over before its delay is",
            )
            .hint("write a `timeout` of at least `delay`");
        }
        if drain.timeout < drain.soft_timeout {
            self.error(
                &at.key("softTimeout"),
                "streams would be ended after the drain is over",
            )
            .hint("write a `softTimeout` of at most `timeout`");
        }
        drain
    }
}

fn or(span: Option<Span>, default: Duration) -> Duration {
    span.map_or(default, |span| span.0)
}
