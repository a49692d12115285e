//! Samples CPU, memory and pressure of the cgroup (cgroup v2) once per second, for overload
//! protection.
//!
//! This module decides only how each signal is measured. Thresholds and load levels are in
//! [`crate::resilience::shed`]. It reads nothing that the policy does not configure, and it
//! does not know requests.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    clock,
    resilience::shed::{OverloadLevelChange, OverloadSignal, ProtectionConfig},
    state::State,
    telemetry::{event::Event, label::Label},
};

/// Interval between two samples.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// Samples the signals that the active policy configures, and emits an event when the overload
/// level changes. Never returns.
pub(super) async fn monitor_resources(state: Arc<State>, cgroup: Option<PathBuf>) {
    let cgroup = cgroup
        .or_else(own_cgroup)
        .unwrap_or_else(|| PathBuf::from("/sys/fs/cgroup"));
    let mut last_cpu_sample: Option<(Duration, Instant)> = None;
    let mut unreadable_signals: Vec<OverloadSignal> = Vec::new();
    loop {
        clock::sleep(SAMPLE_INTERVAL).await;
        let config = state
            .active_policy
            .load()
            .snapshot
            .protection
            .as_ref()
            .map_or_else(ProtectionConfig::default, |spec| spec.config);
        state.protection.reconfigure(config);
        for signal in OverloadSignal::ALL
            .into_iter()
            .filter(|signal| config.thresholds(*signal).is_some())
        {
            let now = clock::now();
            let read = match signal {
                OverloadSignal::Cpu => cpu_utilization(&cgroup, &mut last_cpu_sample, now),
                OverloadSignal::Memory => memory_utilization(&cgroup),
                OverloadSignal::CpuPressure => {
                    pressure_share(&cgroup.join("cpu.pressure")).map(Some)
                }
                OverloadSignal::MemoryPressure => {
                    pressure_share(&cgroup.join("memory.pressure")).map(Some)
                }
            };
            match read {
                Ok(value) => {
                    unreadable_signals.retain(|known| *known != signal);
                    emit_change(&state, state.protection.record_signal(signal, value, now));
                }
                Err(error) if !unreadable_signals.contains(&signal) => {
                    unreadable_signals.push(signal);
                    emit_change(&state, state.protection.record_signal(signal, None, now));
                    tracing::warn!(
                        "{} of the policy's protection cannot be watched in {}: {error}",
                        signal.label(),
                        cgroup.display()
                    );
                }
                Err(_) => {}
            }
        }
        state.protection.advance_one_second();
    }
}

fn emit_change(state: &State, change: Option<OverloadLevelChange>) {
    if let Some(change) = change {
        state.telemetry.emit(Event::ProtectionChanged { change });
    }
}

/// Returns the cgroup directory of this process, or `None` if it is not mounted here. In a
/// container it is usually the root of the hierarchy.
fn own_cgroup() -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    // Without a cgroup namespace, the container reads a path that is not mounted inside it.
    Some(Path::new("/sys/fs/cgroup").join(path)).filter(|path| path.is_dir())
}

/// Returns the used share of the allowed CPU time since the last sample: 1.0 is the whole
/// quota. Returns `None` for the first sample.
fn cpu_utilization(
    cgroup: &Path,
    last_cpu_sample: &mut Option<(Duration, Instant)>,
    now: Instant,
) -> io::Result<Option<f64>> {
    let used = parse_stat_field(&fs::read_to_string(cgroup.join("cpu.stat"))?, "usage_usec")
        .map(Duration::from_micros)
        .ok_or_else(unexpected_content)?;
    let machine = std::thread::available_parallelism().map_or(1.0, |cpus| cpus.get() as f64);
    // The root cgroup has no `cpu.max`; all CPUs of the machine are then available.
    let cpus = fs::read_to_string(cgroup.join("cpu.max"))
        .ok()
        .and_then(|text| parse_cpu_quota(&text))
        .unwrap_or(machine);
    let before = last_cpu_sample.replace((used, now));
    Ok(before.and_then(|(before, then)| {
        let time = now.saturating_duration_since(then).as_secs_f64() * cpus;
        (time > 0.0).then(|| used.saturating_sub(before).as_secs_f64() / time)
    }))
}

/// Returns the used share of `memory.max`, without the reclaimable file cache
/// (`inactive_file`). Returns `None` without a memory limit.
fn memory_utilization(cgroup: &Path) -> io::Result<Option<f64>> {
    let number = |name: &str| {
        fs::read_to_string(cgroup.join(name)).map(|text| text.trim().parse::<u64>().ok())
    };
    let used = number("memory.current")?.ok_or_else(unexpected_content)?;
    let Some(limit_bytes) = number("memory.max")?.filter(|limit_bytes| *limit_bytes > 0) else {
        return Ok(None);
    };
    let reclaimable = parse_stat_field(
        &fs::read_to_string(cgroup.join("memory.stat"))?,
        "inactive_file",
    )
    .unwrap_or(0);
    #[expect(
        clippy::cast_precision_loss,
        reason = "a share of bytes needs no more than 52 bits"
    )]
    let share = used.saturating_sub(reclaimable) as f64 / limit_bytes as f64;
    Ok(Some(share))
}

/// Returns the share of the last ten seconds in which at least one task was stalled (`some
/// avg10`), from 0.0 to 1.0.
fn pressure_share(file: &Path) -> io::Result<f64> {
    let text = fs::read_to_string(file)?;
    let some = text
        .lines()
        .find_map(|line| line.strip_prefix("some "))
        .ok_or_else(unexpected_content)?;
    let average = some
        .split(' ')
        .find_map(|word| word.strip_prefix("avg10="))
        .and_then(|percent| percent.parse::<f64>().ok());
    average
        .map(|percent| percent / 100.0)
        .ok_or_else(unexpected_content)
}

/// Returns the number after `name` in a file with lines such as `usage_usec 12`.
fn parse_stat_field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        line.strip_prefix(name)?
            .strip_prefix(' ')?
            .trim()
            .parse()
            .ok()
    })
}

/// Returns the number of CPUs that `cpu.max` allows, or `None` without a limit.
fn parse_cpu_quota(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

fn unexpected_content() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it does not say what it should")
}

#[cfg(test)]
mod tests;
