//! Reading policies and putting them in force: all or nothing.
//!
//! A faulty set changes nothing; it is told as an event, counted, and shown in the status, with every fault. The last good set
//! is kept on disk if there is a place for it, so that a restart with a broken file starts from it and says so.

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

/// The file of the last good set in the state directory.
const LAST_GOOD_FILE: &str = "last-good-policies.json";

/// Reads policies and puts them in force.
#[derive(Debug)]
pub struct Reloader {
    state: Arc<State>,
    listeners: Arc<dyn ListenerSet>,
    path: PathBuf,
    state_dir: Option<PathBuf>,
    environment: HashMap<String, String>,
    /// The hash of the set that was last looked at, good or not.
    last_seen_hash: String,
}

/// Why an instance cannot start.
#[derive(Debug)]
pub enum InitialLoadError {
    /// The policies are faulty, and there is no good set to go back to.
    Policy(Diagnostics),
    /// An address is taken.
    Bind(String),
}

impl Reloader {
    /// Makes a reloader for a policy directory.
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

    /// The policy directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The listeners.
    #[must_use]
    pub fn listeners(&self) -> &Arc<dyn ListenerSet> {
        &self.listeners
    }

    /// Puts the first set in force: the one in the policy directory, or if that is faulty the last good one.
    ///
    /// # Errors
    /// If there is neither, or a listener cannot be bound.
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

    /// Reads the policies again, changed or not.
    ///
    /// # Errors
    /// All faults, one line each.
    pub fn reload(&mut self) -> Result<ReloadReport, Vec<String>> {
        let refused = match self.read_policies() {
            Ok((source, loaded)) => match self.apply_policies(&source, loaded) {
                Ok(reloaded) => return Ok(reloaded),
                Err(refused) => {
                    // An address may be free the next time, and a certificate whole, although the files are the same.
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

    /// Reads the policies again if their content is another than what was last seen.
    pub fn reload_if_changed(&mut self) {
        let current_hash = match PolicySource::read(&self.path) {
            Ok(source) => source.hash(),
            Err(faults) => faults.to_string(),
        };
        if current_hash != self.last_seen_hash {
            // The faults, if any, have been told as an event.
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
            tracing::warn!("the last good policies cannot be kept: {error}");
        }
        Ok(ReloadReport {
            generation,
            changes,
        })
    }

    fn set_readiness_conditions(&self, snapshot: &PolicySnapshot) {
        let (lifecycle, telemetry, now) =
            (&self.state.lifecycle, &self.state.telemetry, clock::now());
        lifecycle.set_condition(
            condition::POLICY,
            true,
            format!("hash {}", snapshot.hash),
            now,
            telemetry,
        );
        match snapshot.lifecycle.required_backend {
            None => lifecycle.set_condition(
                condition::APP,
                true,
                "no backend is required",
                now,
                telemetry,
            ),
            // Probing says when it is met; until then it is not, unless it was before.
            Some(index) if !lifecycle.has_started() => {
                lifecycle.set_condition(
                    condition::APP,
                    false,
                    format!(
                        "the check of `{}` has not passed yet",
                        snapshot.backends[index].name
                    ),
                    now,
                    telemetry,
                );
            }
            Some(_) => {}
        }
        // Discovery says when there was an answer about each.
        if !lifecycle.has_started()
            && snapshot
                .backends
                .iter()
                .any(|backend| !matches!(backend.discovery, Discovery::Static(_)))
        {
            lifecycle.set_condition(
                condition::ENDPOINTS,
                false,
                "not looked for yet",
                now,
                telemetry,
            );
        }
        readiness_gates::reconcile(&self.state);
        lifecycle.set_condition(
            condition::LISTENERS,
            true,
            format!("{} bound", snapshot.listeners.len()),
            now,
            telemetry,
        );
    }

    /// Tells of a refusal; of the same one again and again only once.
    fn report_refused(&self, faults: Vec<String>) {
        let status = Err(faults.join("\n"));
        if self.state.lifecycle.policy_current() == status {
            return;
        }
        self.state.lifecycle.set_policy_current(status);
        self.state.telemetry.emit(Event::PolicyRefused { faults });
    }

    /// Keeps a good set for the next start; written beside and moved, so that it is whole or not there.
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
                    "the last good policies in {} cannot be used: {error}",
                    path.display()
                )
            })
            .ok()
    }
}
