//! The guide for a new policy section matches the code.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

const GUIDE: &str = include_str!("../../docs/adding-a-policy.md");

/// Words that only the files of the example section contain.
const EXAMPLE_WORDS: [&str; 5] = [
    "AdmissionControl",
    "admission_control",
    "AdmissionState",
    "AdmissionController",
    "pub mod admission;",
];

/// Paths in the tables of the guide, one set for each table.
fn documented_files() -> Vec<BTreeSet<String>> {
    let mut tables = Vec::new();
    for line in GUIDE.lines() {
        if line == "| file | content |" {
            tables.push(BTreeSet::new());
        } else if let Some((path, _)) = line
            .strip_prefix("| `")
            .and_then(|rest| rest.split_once('`'))
        {
            tables.last_mut().unwrap().insert(path.to_owned());
        }
    }
    tables
}

fn source_files(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            source_files(&path, files);
        } else if path.file_name().unwrap() != "tests.rs" {
            files.push(path);
        }
    }
}

#[test]
fn the_guide_lists_exactly_the_files_of_its_example() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    source_files(&root.join("src"), &mut files);
    let actual: BTreeSet<String> = files
        .into_iter()
        .filter(|path| {
            let text = fs::read_to_string(path).unwrap();
            EXAMPLE_WORDS.iter().any(|word| text.contains(word))
        })
        .map(|path| path.strip_prefix(root).unwrap().display().to_string())
        .collect();
    let documented: BTreeSet<String> = documented_files().into_iter().flatten().collect();
    assert_eq!(actual, documented);
}

#[test]
fn a_section_that_acts_on_requests_needs_at_most_ten_files() {
    let tables = documented_files();
    assert_eq!(tables.len(), 2);
    assert!(tables[0].len() <= 10, "{:?}", tables[0]);
}
