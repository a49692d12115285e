//! Reads the files of a policy directory in a consistent version.
//!
//! Kubernetes mounts a ConfigMap as links to a directory that is swapped as a whole. A reading
//! that spans the swap could mix two versions. The reader therefore repeats the reading until
//! two consecutive readings are equal. It does not parse the texts.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::policy::diagnostic::{Diagnostic, Diagnostics, SourceSpan};

/// Maximum number of repeated readings of a directory that keeps changing.
const MAX_READ_ATTEMPTS: u32 = 10;

/// Name and text of one policy file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyFile {
    /// Path of the file, as diagnostics show it.
    pub name: Arc<str>,
    /// Contents of the file.
    pub text: String,
}

/// Files of a policy directory, sorted by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PolicySource {
    files: Vec<PolicyFile>,
}

impl PolicySource {
    /// Reads every `*.yaml` and `*.yml` file of a directory, or one file.
    ///
    /// Subdirectories and names that begin with a dot are ignored. The latter include the
    /// directories that Kubernetes creates in a mounted ConfigMap.
    ///
    /// # Errors
    /// Returns a diagnostic for each unreadable file, for a directory without policy files, and
    /// for files that keep changing.
    pub fn read(path: &Path) -> Result<Self, Diagnostics> {
        let mut last = Self::read_once(path)?;
        for _ in 0..MAX_READ_ATTEMPTS {
            let again = Self::read_once(path)?;
            if again == last {
                return Ok(last);
            }
            last = again;
        }
        Err(unreadable_diagnostic(path, "it changes all the time").into())
    }

    /// Creates a source from the text of one file.
    #[must_use]
    pub fn from_text(name: impl Into<Arc<str>>, text: impl Into<String>) -> Self {
        Self::from_files(vec![PolicyFile {
            name: name.into(),
            text: text.into(),
        }])
    }

    /// Creates a source from texts, sorted by name.
    #[must_use]
    pub fn from_files(mut files: Vec<PolicyFile>) -> Self {
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Self { files }
    }

    /// Returns the files, sorted by name.
    #[must_use]
    pub fn files(&self) -> &[PolicyFile] {
        &self.files
    }

    /// Returns the FNV-1a hash of all file names and texts, as 16 hexadecimal digits.
    ///
    /// Only the last component of a name counts, so that a mount at another path has the same hash.
    #[must_use]
    pub fn hash(&self) -> String {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let parts = self
            .files
            .iter()
            .flat_map(|file| [file.name.rsplit('/').next().unwrap_or_default(), &file.text]);
        for byte in parts.flat_map(|part| part.bytes().chain([0])) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        format!("{hash:016x}")
    }

    fn read_once(path: &Path) -> Result<Self, Diagnostics> {
        let mut paths = if path.is_dir() {
            list_policy_files(path)
                .map_err(|error| Diagnostics::from(unreadable_diagnostic(path, error)))?
        } else {
            vec![path.to_owned()]
        };
        if paths.is_empty() {
            let diagnostic = unreadable_diagnostic(path, "there is no *.yaml in it")
                .with_hint("mount the policy directory here, or name another with --policies");
            return Err(diagnostic.into());
        }
        paths.sort();
        let mut files = Vec::new();
        let mut diagnostics = Vec::new();
        for path in paths {
            match fs::read_to_string(&path) {
                Ok(text) => files.push(PolicyFile {
                    name: path.display().to_string().into(),
                    text,
                }),
                Err(error) => diagnostics.push(unreadable_diagnostic(&path, error)),
            }
        }
        if diagnostics.is_empty() {
            Ok(Self::from_files(files))
        } else {
            Err(Diagnostics::new(diagnostics))
        }
    }
}

fn list_policy_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let is_hidden = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let is_yaml = path
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml");
        if is_yaml && !is_hidden && path.is_file() {
            found.push(path);
        }
    }
    Ok(found)
}

fn unreadable_diagnostic(path: &Path, reason: impl std::fmt::Display) -> Diagnostic {
    Diagnostic::error(
        SourceSpan::whole_file(path.display().to_string().into()),
        format!("cannot be read: {reason}"),
    )
}
