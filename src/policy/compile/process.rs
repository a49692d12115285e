//! Recovery and the access log.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{At, Compiler, backends::MadeBackend, sections};
use crate::{
    policy::{
        document::{Action, ActionType, LogFormat, ModeName, Recovery, Rung, TriggerType},
        snapshot::{AccessLogSpec, ActionSpec, RecoveryAction, RecoverySpec, RouteSpec},
    },
    resilience::{Mode, recovery::RecoveryConfig},
};

impl<'a> Compiler<'a> {
    pub(super) fn recoveries(
        &mut self,
        backends: &[(At<'a>, MadeBackend<'a>)],
        routes: &[RouteSpec],
    ) -> Vec<RecoverySpec> {
        let mut seen = HashMap::new();
        let mut recoveries = Vec::new();
        for (at, recovery) in self.each("recovery", |document| document.spec.recovery.as_slice()) {
            self.check_name(&at.key("name"), "recovery", &recovery.name, &mut seen);
            self.check_trigger(&at.key("trigger"), recovery, backends, routes);
            let made = self.recovery(&at, recovery);
            if recovery.mode != ModeName::Off {
                recoveries.extend(made);
            }
        }
        recoveries
    }

    fn check_trigger(
        &mut self,
        at: &At<'a>,
        recovery: &Recovery,
        backends: &[(At<'a>, MadeBackend<'a>)],
        routes: &[RouteSpec],
    ) {
        let TriggerType::CircuitOpenFor = recovery.trigger.kind;
        let name = recovery.trigger.backend.as_str();
        let Some(backend) = backends
            .iter()
            .position(|(_, backend)| *backend.spec.name == *name)
        else {
            return self.unknown_reference(
                &at.key("backend"),
                "backend",
                name,
                backends.iter().map(|(_, backend)| &*backend.spec.name),
            );
        };
        let has_breaker = routes.iter().any(|route| match &route.action {
            ActionSpec::Forward(to) => to.iter().any(|destination| {
                destination.backend == backend && destination.policy.breaker.is_some()
            }),
            ActionSpec::Redirect(_) => false,
        });
        if !has_breaker {
            let hint =
                "add a `circuitBreaker` to the backend's policy or to a route that leads to it";
            self.error(
                &at.key("backend"),
                format!("no breaker watches the backend `{name}`, so this would never happen"),
            )
            .hint(hint);
        }
    }

    fn recovery(&mut self, at: &At<'a>, written: &Recovery) -> Option<RecoverySpec> {
        let mut ladder = Vec::new();
        for (index, rung) in written.ladder.iter().enumerate() {
            ladder.extend(self.rung(&at.key("ladder").index(index), rung));
        }
        let Some(rungs) = u32::try_from(written.ladder.len())
            .ok()
            .and_then(std::num::NonZeroU32::new)
        else {
            self.error(
                &at.key("ladder"),
                "a recovery without an action does nothing",
            )
            .hint("add `- {action: {type: FailReadiness}}`");
            return None;
        };
        let max_per_hour = self.at_least_one(at, "maxPerHour", written.max_per_hour, 3);
        let cooldown = written
            .cooldown
            .map_or(Duration::from_mins(10), |span| span.0);
        if cooldown < Duration::from_secs(1) {
            self.error(&at.key("cooldown"), "a remedy needs time to help")
                .hint("10m is the default, 1s is the least");
        }
        let mode: Mode = sections::mode(written.mode);
        Some(RecoverySpec {
            name: Arc::from(written.name.as_str()),
            mode,
            backend: Arc::from(written.trigger.backend.as_str()),
            open_for: written.trigger.duration.0,
            ladder,
            config: RecoveryConfig {
                rungs,
                cooldown,
                max_per_hour,
            },
        })
    }

    fn rung(&mut self, at: &At<'a>, rung: &Rung) -> Option<RecoveryAction> {
        let Action { kind, url, timeout } = &rung.action;
        let at = at.key("action");
        match kind {
            ActionType::FailReadiness => {
                if url.is_some() || timeout.is_some() {
                    self.error(&at, "FailReadiness has neither `url` nor `timeout`")
                        .hint("take them out, or write `type: Webhook`");
                }
                Some(RecoveryAction::FailReadiness)
            }
            ActionType::Webhook => {
                if rung.undo.is_some() {
                    self.error(&at, "a webhook cannot be undone")
                        .hint("take `undo` out");
                }
                let Some(url) = url else {
                    self.error(&at, "a webhook needs an address")
                        .hint("add `url: \"http://127.0.0.1:9009/hook\"`");
                    return None;
                };
                let parsed = url
                    .parse::<http::Uri>()
                    .ok()
                    .filter(|uri| uri.scheme_str() == Some("http") && uri.host().is_some());
                let Some(uri) = parsed else {
                    self.error(
                        &at.key("url"),
                        format!("`{url}` is not an address that can be called"),
                    )
                    .hint("write `http://HOST:PORT/PATH`; https is not supported by this version");
                    return None;
                };
                if timeout.is_some_and(|timeout| timeout.0.is_zero()) {
                    self.error(&at.key("timeout"), "a call needs time")
                        .hint("3s is the default");
                }
                Some(RecoveryAction::Webhook {
                    url: uri,
                    timeout: timeout.map_or(Duration::from_secs(3), |span| span.0),
                })
            }
        }
    }

    pub(super) fn access_log(&mut self) -> AccessLogSpec {
        let written = self.at_most_one("telemetry", |document| document.spec.telemetry.as_ref());
        let log = written
            .and_then(|(_, telemetry)| telemetry.access_log.clone())
            .unwrap_or_default();
        AccessLogSpec {
            is_on: log.format != Some(LogFormat::Off),
            sampling: log
                .sampling_percentage
                .map_or(1.0, |percent| percent.0 / 100.0),
            always: log.always_log_codes.unwrap_or_default().iter().collect(),
        }
    }
}
