//! Loads policies and activates them as a whole or not at all.
//!
//! This module decides whether a policy set becomes active. An invalid set changes nothing. It
//! is reported with all its errors as an event, in a metric and in the status. If a state
//! directory is configured, the last valid set is stored in it, so that a restart with an
//! invalid file starts from that set and reports it. The module does not know why a reload was
//! requested.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    clock,
    control::{certificates, health::readiness_gates},
    policy::{
        self,
        diagnostic::Diagnostics,
        diff,
        snapshot::{Discovery, PolicySnapshot},
        source::{PolicyFile, PolicySource},
    },
    state::{
        State,
        instance::{command::ReloadReport, lifecycle::condition, listener_sockets::ListenerSet},
    },
    telemetry::event::Event,
};

/// File name of the last valid policy set in the state directory.
const LAST_GOOD_FILE: &str = "last-good-policies.json";

/// Loads policies from disk and activates them.
#[derive(Debug)]
pub struct Reloader {
    state: Arc<State>,
    listeners: Arc<dyn ListenerSet>,
    path: PathBuf,
    state_dir: Option<PathBuf>,
    environment: HashMap<String, String>,
    /// Content hash of the set that was last read, valid or not; the error text if it could not
    /// be read.
    last_seen_hash: String,
}

/// Reason why no initial policy set could be activated.
#[derive(Debug)]
pub enum InitialLoadError {
    /// The policies are invalid, and no stored set can be used.
    Policy(Diagnostics),
    /// A listener cannot be bound, or a certificate file cannot be used.
    Bind(String),
}

impl Reloader {
    /// Creates a reloader for a policy directory or file. It reads nothing before
    /// [`Self::load_initial`].
    #[must_use]
    pub fn new(
        state: Arc<State>,
        listeners: Arc<dyn ListenerSet>,
        path: PathBuf,
        state_dir: Option<PathBuf>,
        environment: HashMap<String, String>,
    ) -> Self {
        Self {
            state,
            listeners,
            path,
            state_dir,
            environment,
            last_seen_hash: String::new(),
        }
    }

    /// Returns the path of the policy directory or file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the listeners that follow the active policy.
    #[must_use]
    pub fn listeners(&self) -> &Arc<dyn ListenerSet> {
        &self.listeners
    }

    /// Activates the first policy set: the one at the policy path, or the last valid set if that
    /// is invalid.
    ///
    /// # Errors
    /// If neither set is valid, a listener cannot be bound, or a certificate file cannot be
    /// used.
    pub fn load_initial(&mut self) -> Result<(), InitialLoadError> {
        let faults = match self.read_policies() {
            Ok((source, loaded)) => {
                return self
                    .apply_policies(&source, loaded)
                    .map(drop)
                    .map_err(|refused| InitialLoadError::Bind(refused.join("; ")));
            }
            Err(faults) => faults,
        };
        let Some((source, loaded)) = self.load_last_good() else {
            return Err(InitialLoadError::Policy(faults));
        };
        self.apply_policies(&source, loaded)
            .map_err(|refused| InitialLoadError::Bind(refused.join("; ")))?;
        self.last_seen_hash.clear();
        self.report_refused(
            faults
                .as_slice()
                .iter()
                .map(policy::diagnostic::Diagnostic::to_single_line)
                .collect(),
        );
        Ok(())
    }

    /// Reloads the policies, even if their content is unchanged.
    ///
    /// # Errors
    /// One line for each error. The active policy is then unchanged.
    pub fn reload(&mut self) -> Result<ReloadReport, Vec<String>> {
        let refused = match self.read_policies() {
            Ok((source, loaded)) => match self.apply_policies(&source, loaded) {
                Ok(reloaded) => return Ok(reloaded),
                Err(refused) => {
                    // The next attempt can succeed with the same files, because an address may
                    // be free or a certificate may be complete by then.
                    self.last_seen_hash.clear();
                    refused
                }
            },
            Err(faults) => faults
                .as_slice()
                .iter()
                .map(policy::diagnostic::Diagnostic::to_single_line)
                .collect(),
        };
        self.report_refused(refused.clone());
        Err(refused)
    }

    /// Reloads the policies if their content differs from the content that was last read.
    pub fn reload_if_changed(&mut self) {
        let current_hash = match PolicySource::read(&self.path) {
            Ok(source) => source.hash(),
            Err(faults) => faults.to_string(),
        };
        if current_hash != self.last_seen_hash {
            // The reload has already reported a failure as an event.
            _ = self.reload();
        }
    }

    fn read_policies(&mut self) -> Result<(PolicySource, policy::LoadedPolicy), Diagnostics> {
        let source = PolicySource::read(&self.path)
            .inspect_err(|faults| self.last_seen_hash = faults.to_string())?;
        self.last_seen_hash = source.hash();
        let loaded = policy::load_source(&source, &self.environment)?;
        Ok((source, loaded))
    }

    fn apply_policies(
        &self,
        source: &PolicySource,
        loaded: policy::LoadedPolicy,
    ) -> Result<ReloadReport, Vec<String>> {
        let snapshot = Arc::new(loaded.snapshot);
        let before = self.state.active_policy.load_full();
        let changes = if before.generation == 0 {
            Vec::new()
        } else {
            diff::diff(&before.snapshot, &snapshot)
        };
        if before.generation > 0 && before.snapshot.hash == snapshot.hash {
            if self.state.lifecycle.policy_current().is_err() {
                self.state.lifecycle.set_policy_current(Ok(()));
                self.state.telemetry.emit(Event::PolicyRestored {
                    generation: before.generation,
                });
            }
            return Ok(ReloadReport {
                generation: before.generation,
                changes,
            });
        }
        self.state
            .tls
            .apply(&certificates::load_missing(&snapshot, &self.state.tls)?);
        let mut generation = before.generation;
        let mut apply = || generation = self.state.apply(snapshot.clone(), clock::now());
        self.listeners
            .reconcile(&snapshot, &mut apply)
            .map_err(|cannot_bind| vec![cannot_bind.to_string()])?;
        self.state
            .tls
            .retain_referenced([&before.snapshot, &snapshot]);
        self.state.lifecycle.set_policy_current(Ok(()));
        let warnings = loaded
            .warnings
            .as_slice()
            .iter()
            .map(policy::diagnostic::Diagnostic::to_single_line)
            .collect();
        self.state.telemetry.emit(Event::PolicyApplied {
            generation,
            hash: snapshot.hash.clone(),
            changes: changes.clone(),
            warnings,
        });
        self.set_readiness_conditions(&snapshot);
        if let Err(error) = self.save_last_good(source) {
            tracing::warn!("the last valid policies cannot be stored: {error}");
        }
        Ok(ReloadReport {
            generation,
            changes,
        })
    }

    fn set_readiness_conditions(&self, snapshot: &PolicySnapshot) {
        let (lifecycle, now) = (&self.state.lifecycle, clock::now());
        lifecycle.set_condition(
            condition::POLICY,
            true,
            format!("hash {}", snapshot.hash),
            now,
        );
        match snapshot.lifecycle.required_backend {
            None => lifecycle.set_condition(condition::APP, true, "no backend is required", now),
            // Active checks set this condition. Before startup it is unmet until the first
            // check passes; later reloads leave it unchanged.
            Some(index) if !lifecycle.has_started() => {
                lifecycle.set_condition(
                    condition::APP,
                    false,
                    format!(
                        "the check of `{}` has not passed yet",
                        snapshot.backends[index].name
                    ),
                    now,
                );
            }
            Some(_) => {}
        }
        // Discovery meets this condition after the first result for each backend.
        if !lifecycle.has_started()
            && snapshot
                .backends
                .iter()
                .any(|backend| !matches!(backend.discovery, Discovery::Static(_)))
        {
            lifecycle.set_condition(
                condition::ENDPOINTS,
                false,
                "discovery has no result yet",
                now,
            );
        }
        readiness_gates::reconcile(&self.state);
        lifecycle.set_condition(
            condition::LISTENERS,
            true,
            format!("{} bound", snapshot.listeners.len()),
            now,
        );
    }

    /// Reports a rejected policy set. Consecutive identical rejections emit one event.
    fn report_refused(&self, faults: Vec<String>) {
        let status = Err(faults.join("\n"));
        if self.state.lifecycle.policy_current() == status {
            return;
        }
        self.state.lifecycle.set_policy_current(status);
        self.state.telemetry.emit(Event::PolicyRefused { faults });
    }

    /// Stores a valid policy set for the next start. The file is written under a temporary name
    /// and renamed, so that it is never incomplete.
    fn save_last_good(&self, source: &PolicySource) -> io::Result<()> {
        let Some(directory) = &self.state_dir else {
            return Ok(());
        };
        fs::create_dir_all(directory)?;
        let files: Vec<[&str; 2]> = source
            .files()
            .iter()
            .map(|file| [&*file.name, file.text.as_str()])
            .collect();
        let temporary_file = directory.join(format!("{LAST_GOOD_FILE}.new"));
        fs::write(&temporary_file, serde_json::to_vec(&files)?)?;
        fs::rename(temporary_file, directory.join(LAST_GOOD_FILE))
    }

    fn load_last_good(&self) -> Option<(PolicySource, policy::LoadedPolicy)> {
        let path = self.state_dir.as_ref()?.join(LAST_GOOD_FILE);
        let read =
            || -> Result<(PolicySource, policy::LoadedPolicy), Box<dyn std::error::Error>> {
                let files: Vec<[String; 2]> = serde_json::from_slice(&fs::read(&path)?)?;
                let source = PolicySource::from_files(
                    files
                        .into_iter()
                        .map(|[name, text]| PolicyFile {
                            name: name.into(),
                            text,
                        })
                        .collect(),
                );
                let loaded = policy::load_source(&source, &self.environment)?;
                Ok((source, loaded))
            };
        read()
            .inspect_err(|error| {
                tracing::error!(
                    "the last valid policies in {} cannot be used: {error}",
                    path.display()
                )
            })
            .ok()
    }
}
