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

use super::{certificates, gates};
use crate::{
    clock,
    policy::{
        self,
        diagnostic::Diagnostics,
        diff,
        snapshot::{Discovery, Snapshot},
        source::{File, Source},
    },
    state::{State, command::Reloaded, lifecycle::condition, listening::ListenerSet},
    telemetry::event::Event,
};

/// The file of the last good set in the state directory.
const LAST_GOOD: &str = "last-good-policies.json";

/// Reads policies and puts them in force.
#[derive(Debug)]
pub struct Reloader {
    state: Arc<State>,
    listeners: Arc<dyn ListenerSet>,
    path: PathBuf,
    state_dir: Option<PathBuf>,
    environment: HashMap<String, String>,
    /// The hash of the set that was last looked at, good or not.
    last_seen: String,
}

/// Why an instance cannot start.
#[derive(Debug)]
pub enum StartFault {
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
            last_seen: String::new(),
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
    pub fn start(&mut self) -> Result<(), StartFault> {
        let faults = match self.read() {
            Ok((source, loaded)) => {
                return self
                    .put_in_force(&source, loaded)
                    .map(drop)
                    .map_err(|refused| StartFault::Bind(refused.join("; ")));
            }
            Err(faults) => faults,
        };
        let Some((source, loaded)) = self.last_good() else {
            return Err(StartFault::Policy(faults));
        };
        self.put_in_force(&source, loaded)
            .map_err(|refused| StartFault::Bind(refused.join("; ")))?;
        self.last_seen.clear();
        self.refuse(
            faults
                .as_slice()
                .iter()
                .map(policy::diagnostic::Diagnostic::one_line)
                .collect(),
        );
        Ok(())
    }

    /// Reads the policies again, changed or not.
    ///
    /// # Errors
    /// All faults, one line each.
    pub fn reload(&mut self) -> Result<Reloaded, Vec<String>> {
        let refused = match self.read() {
            Ok((source, loaded)) => match self.put_in_force(&source, loaded) {
                Ok(reloaded) => return Ok(reloaded),
                Err(refused) => {
                    // An address may be free the next time, and a certificate whole, although the files are the same.
                    self.last_seen.clear();
                    refused
                }
            },
            Err(faults) => faults
                .as_slice()
                .iter()
                .map(policy::diagnostic::Diagnostic::one_line)
                .collect(),
        };
        self.refuse(refused.clone());
        Err(refused)
    }

    /// Reads the policies again if their content is another than what was last seen.
    pub fn reload_if_changed(&mut self) {
        let seen = match Source::read(&self.path) {
            Ok(source) => source.hash(),
            Err(faults) => faults.to_string(),
        };
        if seen != self.last_seen {
            // The faults, if any, have been told as an event.
            _ = self.reload();
        }
    }

    fn read(&mut self) -> Result<(Source, policy::Loaded), Diagnostics> {
        let source =
            Source::read(&self.path).inspect_err(|faults| self.last_seen = faults.to_string())?;
        self.last_seen = source.hash();
        let loaded = policy::load_source(&source, &self.environment)?;
        Ok((source, loaded))
    }

    fn put_in_force(
        &self,
        source: &Source,
        loaded: policy::Loaded,
    ) -> Result<Reloaded, Vec<String>> {
        let snapshot = Arc::new(loaded.snapshot);
        let before = self.state.live.load_full();
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
            return Ok(Reloaded {
                generation: before.generation,
                changes,
            });
        }
        self.state
            .tls
            .put(&certificates::load(&snapshot, &self.state.tls)?);
        let mut generation = before.generation;
        let mut apply = || generation = self.state.apply(snapshot.clone(), clock::now());
        self.listeners
            .follow(&snapshot, &mut apply)
            .map_err(|cannot_bind| vec![cannot_bind.to_string()])?;
        self.state.tls.keep_only([&before.snapshot, &snapshot]);
        self.state.lifecycle.set_policy_current(Ok(()));
        let warnings = loaded
            .warnings
            .as_slice()
            .iter()
            .map(policy::diagnostic::Diagnostic::one_line)
            .collect();
        self.state.telemetry.emit(Event::PolicyApplied {
            generation,
            hash: snapshot.hash.clone(),
            changes: changes.clone(),
            warnings,
        });
        self.set_conditions(&snapshot);
        if let Err(error) = self.keep(source) {
            tracing::warn!("the last good policies cannot be kept: {error}");
        }
        Ok(Reloaded {
            generation,
            changes,
        })
    }

    fn set_conditions(&self, snapshot: &Snapshot) {
        let (lifecycle, telemetry, now) =
            (&self.state.lifecycle, &self.state.telemetry, clock::now());
        lifecycle.set(
            condition::POLICY,
            true,
            format!("hash {}", snapshot.hash),
            now,
            telemetry,
        );
        match snapshot.lifecycle.require_backend {
            None => lifecycle.set(
                condition::APP,
                true,
                "no backend is required",
                now,
                telemetry,
            ),
            // Probing says when it is met; until then it is not, unless it was before.
            Some(index) if !lifecycle.has_started() => {
                lifecycle.set(
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
            lifecycle.set(
                condition::ENDPOINTS,
                false,
                "not looked for yet",
                now,
                telemetry,
            );
        }
        gates::follow(&self.state);
        lifecycle.set(
            condition::LISTENERS,
            true,
            format!("{} bound", snapshot.listeners.len()),
            now,
            telemetry,
        );
    }

    /// Tells of a refusal; of the same one again and again only once.
    fn refuse(&self, faults: Vec<String>) {
        let told = Err(faults.join("\n"));
        if self.state.lifecycle.policy_current() == told {
            return;
        }
        self.state.lifecycle.set_policy_current(told);
        self.state.telemetry.emit(Event::PolicyRefused { faults });
    }

    /// Keeps a good set for the next start; written beside and moved, so that it is whole or not there.
    fn keep(&self, source: &Source) -> io::Result<()> {
        let Some(directory) = &self.state_dir else {
            return Ok(());
        };
        fs::create_dir_all(directory)?;
        let files: Vec<[&str; 2]> = source
            .files()
            .iter()
            .map(|file| [&*file.name, file.text.as_str()])
            .collect();
        let beside = directory.join(format!("{LAST_GOOD}.new"));
        fs::write(&beside, serde_json::to_vec(&files)?)?;
        fs::rename(beside, directory.join(LAST_GOOD))
    }

    fn last_good(&self) -> Option<(Source, policy::Loaded)> {
        let path = self.state_dir.as_ref()?.join(LAST_GOOD);
        let read = || -> Result<(Source, policy::Loaded), Box<dyn std::error::Error>> {
            let files: Vec<[String; 2]> = serde_json::from_slice(&fs::read(&path)?)?;
            let source = Source::from_files(
                files
                    .into_iter()
                    .map(|[name, text]| File {
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
