//! Differences in the sections of the whole instance.

use crate::{
    policy::{
        diff::changes::Changes,
        snapshot::{
            AccessLogSpec, GlobalRateLimitSpec, LifecycleSpec, PolicySnapshot, ProtectionSpec,
            RateLimitEngineSpec, RecoverySpec,
        },
    },
    resilience::lifecycle::DrainConfig,
};

/// Appends a line for each difference in the sections of the whole instance.
pub(super) fn diff(old: &PolicySnapshot, new: &PolicySnapshot, lines: &mut Vec<String>) {
    let mut changes = Changes::default();
    diff_global_rate_limit(
        old.global_rate_limit.as_ref(),
        new.global_rate_limit.as_ref(),
        &mut changes,
    );
    lines.extend(changes.into_lines("globalRateLimit: "));
    let mut changes = Changes::default();
    diff_lifecycle((old, &old.lifecycle), (new, &new.lifecycle), &mut changes);
    lines.extend(changes.into_lines("lifecycle: "));
    let mut changes = Changes::default();
    diff_protection(
        old.protection.as_ref(),
        new.protection.as_ref(),
        &mut changes,
    );
    lines.extend(changes.into_lines("protection: "));
    let mut changes = Changes::default();
    diff_access_log(&old.access_log, &new.access_log, &mut changes);
    lines.extend(changes.into_lines("telemetry.accessLog: "));
}

fn diff_global_rate_limit(
    old: Option<&GlobalRateLimitSpec>,
    new: Option<&GlobalRateLimitSpec>,
    changes: &mut Changes,
) {
    let (Some(before), Some(after)) = (old, new) else {
        let in_words = |global: Option<&GlobalRateLimitSpec>| {
            global.map_or_else(|| "none".to_owned(), GlobalRateLimitSpec::to_string)
        };
        changes.value("engine", &in_words(old), &in_words(new));
        return;
    };
    let is_same_engine = match (&before.engine, &after.engine) {
        // The index of a backend differs between snapshots.
        (
            RateLimitEngineSpec::Replicas { name: before, .. },
            RateLimitEngineSpec::Replicas { name: after, .. },
        ) => before == after,
        (before, after) => before == after,
    };
    if before.engine.to_string() == after.engine.to_string() {
        // A password in the URL is not shown.
        changes.hidden("engine", &true, &is_same_engine, "");
    } else {
        changes.value(
            "engine",
            &before.engine.to_string(),
            &after.engine.to_string(),
        );
    }
    changes.duration("timeout", before.timeout, after.timeout);
    changes.value("failClosed", &before.fails_closed, &after.fails_closed);
}

fn diff_lifecycle(
    (old_snapshot, old): (&PolicySnapshot, &LifecycleSpec),
    (new_snapshot, new): (&PolicySnapshot, &LifecycleSpec),
    changes: &mut Changes,
) {
    let name = |snapshot: &PolicySnapshot, index: Option<usize>| {
        index.map(|index| snapshot.backends[index].name.clone())
    };
    let names = |snapshot: &PolicySnapshot, indices: &[usize]| -> Vec<_> {
        let names = indices.iter().map(|index| name(snapshot, Some(*index)));
        names.flatten().collect()
    };
    changes.optional(
        "startup.requireBackend",
        name(old_snapshot, old.required_backend).as_ref(),
        name(new_snapshot, new.required_backend).as_ref(),
    );
    changes.duration("startup.delay", old.startup_delay, new.startup_delay);
    changes.value(
        "startup.successThreshold",
        &old.success_threshold,
        &new.success_threshold,
    );
    changes.list(
        "readinessGates",
        &names(old_snapshot, &old.readiness_gates),
        &names(new_snapshot, &new.readiness_gates),
    );
    let app_probes = |snapshot: &PolicySnapshot, lifecycle: &LifecycleSpec| {
        let probes = lifecycle.app_probes.clone();
        probes.map(|probes| {
            let backend = name(snapshot, Some(probes.backend));
            (
                backend,
                probes.livez_path,
                probes.readyz_path,
                probes.startupz_path,
            )
        })
    };
    changes.hidden(
        "appProbes",
        &app_probes(old_snapshot, old),
        &app_probes(new_snapshot, new),
        "",
    );
    changes.hidden("warmUp", &old.warm_up, &new.warm_up, "");
    changes.optional(
        "replicas",
        name(old_snapshot, old.replicas_backend).as_ref(),
        name(new_snapshot, new.replicas_backend).as_ref(),
    );
    let DrainConfig {
        delay,
        quiet_period,
        soft_timeout,
        timeout,
    } = new.drain;
    changes.duration("drain.delay", old.drain.delay, delay);
    changes.duration("drain.quietPeriod", old.drain.quiet_period, quiet_period);
    changes.duration("drain.softTimeout", old.drain.soft_timeout, soft_timeout);
    changes.duration("drain.timeout", old.drain.timeout, timeout);
}

fn diff_protection(
    old: Option<&ProtectionSpec>,
    new: Option<&ProtectionSpec>,
    changes: &mut Changes,
) {
    let (Some(old), Some(new)) = (old, new) else {
        match (old, new) {
            (None, Some(_)) => changes.push("added"),
            (Some(_), None) => changes.push("removed"),
            _ => {}
        }
        return;
    };
    changes.value("mode", &old.mode.name(), &new.mode.name());
    changes.hidden("signals", &old.config, &new.config, "");
    changes.value("shed.header", &old.priority_header, &new.priority_header);
    changes.list("shed.classes", &old.priority_classes, &new.priority_classes);
    changes.value(
        "shed",
        &old.limits_concurrency_by_class,
        &new.limits_concurrency_by_class,
    );
}

pub(super) fn diff_recovery(old: &RecoverySpec, new: &RecoverySpec, changes: &mut Changes) {
    changes.value("mode", &old.mode.name(), &new.mode.name());
    changes.value("trigger.backend", &old.backend, &new.backend);
    changes.duration("trigger.duration", old.open_for, new.open_for);
    // The URL of a webhook may contain a secret.
    changes.hidden("ladder", &old.ladder, &new.ladder, "");
    changes.duration("cooldown", old.config.cooldown, new.config.cooldown);
    changes.value(
        "maxPerHour",
        &old.config.max_per_hour,
        &new.config.max_per_hour,
    );
}

fn diff_access_log(old: &AccessLogSpec, new: &AccessLogSpec, changes: &mut Changes) {
    let state = |log: &AccessLogSpec| if log.is_enabled { "JSON" } else { "Off" };
    changes.value("format", &state(old), &state(new));
    changes.value(
        "samplingPercentage",
        &(old.sampling_ratio * 100.0),
        &(new.sampling_ratio * 100.0),
    );
    changes.value(
        "alwaysLogCodes",
        &format!("[{}]", old.always_logged_statuses),
        &format!("[{}]", new.always_logged_statuses),
    );
}
