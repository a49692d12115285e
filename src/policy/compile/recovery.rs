//! Compiles recovery rules.
//!
//! It rejects a recovery rule whose backend has no breaker, because the rule would never act.
//! It does not know the state of breakers.

use std::{collections::HashMap, sync::Arc, time::Duration};

use crate::{
    policy::{
        compile::{backends::CompiledBackend, compiler::Compiler},
        document::{
            ModeSetting, RecoveryActionSection, RecoveryActionType, RecoveryEntry, RecoveryRung,
            RecoveryTriggerType,
        },
        report::FieldLocation,
        snapshot::{RecoveryAction, RecoverySpec, RouteActionSpec, RouteSpec},
        units::duration_or,
    },
    resilience::{Mode, recovery::RecoveryConfig},
};

impl<'a> Compiler<'a> {
    pub(super) fn compile_recoveries(
        &mut self,
        backends: &[(FieldLocation<'a>, CompiledBackend<'a>)],
        routes: &[RouteSpec],
    ) -> Vec<RecoverySpec> {
        let mut seen = HashMap::new();
        let mut recoveries = Vec::new();
        for (at, recovery) in
            self.collect_items("recovery", |document| document.spec.recovery.as_slice())
        {
            self.report
                .check_name(&at.key("name"), "recovery", &recovery.name, &mut seen);
            self.check_recovery_trigger(&at.key("trigger"), recovery, backends, routes);
            let compiled = self.compile_recovery(&at, recovery);
            if recovery.mode != ModeSetting::Off {
                recoveries.extend(compiled);
            }
        }
        recoveries
    }

    fn check_recovery_trigger(
        &mut self,
        at: &FieldLocation<'_>,
        recovery: &RecoveryEntry,
        backends: &[(FieldLocation<'a>, CompiledBackend<'a>)],
        routes: &[RouteSpec],
    ) {
        let RecoveryTriggerType::CircuitOpenFor = recovery.trigger.kind;
        let name = recovery.trigger.backend.as_str();
        let Some(backend) = self.find_backend(&at.key("backend"), name, backends) else {
            return;
        };
        let has_breaker = routes.iter().any(|route| match &route.action {
            RouteActionSpec::Forward(to) => to.iter().any(|destination| {
                destination.backend == backend && destination.policy.circuit_breaker.is_some()
            }),
            RouteActionSpec::Redirect(_) => false,
        });
        if !has_breaker {
            let hint =
                "add a `circuitBreaker` to the backend's policy or to a route to the backend";
            self.report
                .error(
                    &at.key("backend"),
                    format!(
                        "no circuit breaker protects the backend `{name}`, so the trigger would \
                         never fire"
                    ),
                )
                .hint(hint);
        }
    }

    fn compile_recovery(
        &mut self,
        at: &FieldLocation<'_>,
        section: &RecoveryEntry,
    ) -> Option<RecoverySpec> {
        let mut ladder = Vec::new();
        for (index, rung) in section.ladder.iter().enumerate() {
            ladder.extend(self.compile_recovery_action(&at.key("ladder").index(index), rung));
        }
        let Some(rungs) = u32::try_from(section.ladder.len())
            .ok()
            .and_then(std::num::NonZeroU32::new)
        else {
            self.report
                .error(
                    &at.key("ladder"),
                    "a recovery must have at least one action",
                )
                .hint("add `- {action: {type: FailReadiness}}`");
            return None;
        };
        let max_per_hour =
            self.report
                .require_at_least_one(at, "maxPerHour", section.max_per_hour, 3);
        let cooldown = duration_or(section.cooldown, Duration::from_mins(10));
        if cooldown < Duration::from_secs(1) {
            self.report
                .error(&at.key("cooldown"), "`cooldown` must be at least 1s")
                .hint("10m is the default");
        }
        let mode: Mode = section.mode.mode();
        Some(RecoverySpec {
            name: Arc::from(section.name.as_str()),
            mode,
            backend: Arc::from(section.trigger.backend.as_str()),
            open_for: section.trigger.duration.0,
            ladder,
            config: RecoveryConfig {
                rungs,
                cooldown,
                max_per_hour,
            },
        })
    }

    fn compile_recovery_action(
        &mut self,
        at: &FieldLocation<'_>,
        rung: &RecoveryRung,
    ) -> Option<RecoveryAction> {
        let RecoveryActionSection { kind, url, timeout } = &rung.action;
        let at = at.key("action");
        match kind {
            RecoveryActionType::FailReadiness => {
                if url.is_some() || timeout.is_some() {
                    self.report
                        .error(&at, "FailReadiness must have neither `url` nor `timeout`")
                        .hint("remove them, or write `type: Webhook`");
                }
                Some(RecoveryAction::FailReadiness)
            }
            RecoveryActionType::Webhook => {
                if rung.undo.is_some() {
                    self.report
                        .error(&at, "a webhook cannot be undone")
                        .hint("remove `undo`");
                }
                let Some(url) = url else {
                    self.report
                        .error(&at, "a webhook needs an address")
                        .hint("add `url: \"http://127.0.0.1:9009/hook\"`");
                    return None;
                };
                let parsed = url
                    .parse::<http::Uri>()
                    .ok()
                    .filter(|uri| uri.scheme_str() == Some("http") && uri.host().is_some());
                let Some(uri) = parsed else {
                    self.report
                        .error(
                            &at.key("url"),
                            format!("`{url}` is not an address that can be called"),
                        )
                        .hint(
                            "write `http://HOST:PORT/PATH`; https is not supported by this version",
                        );
                    return None;
                };
                if timeout.is_some_and(|timeout| timeout.0.is_zero()) {
                    self.report
                        .error(&at.key("timeout"), "`timeout` must be longer than 0s")
                        .hint("3s is the default");
                }
                Some(RecoveryAction::Webhook {
                    url: uri,
                    timeout: duration_or(*timeout, Duration::from_secs(3)),
                })
            }
        }
    }
}
