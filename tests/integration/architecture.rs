//! Checks of the rules in ARCHITECTURE.md, and of documents against the code.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use outrigger::telemetry::{label::CountedLabel, reason::Reason};

use crate::module_graph::module_graph;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn source_files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(source_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn is_test_file(path: &Path) -> bool {
    path.file_stem().is_some_and(|stem| stem == "tests")
}

/// Layers that each layer may import, as in the table of ARCHITECTURE.md.
const IMPORT_MATRIX: &[(&str, &[&str])] = &[
    ("resilience", &[]),
    ("policy", &["resilience"]),
    ("telemetry", &["resilience"]),
    ("clock", &[]),
    ("settings", &[]),
    ("message", &[]),
    ("transport", &["policy"]),
    ("state", &["resilience", "policy", "telemetry", "message"]),
    (
        "proxy",
        &[
            "resilience",
            "policy",
            "telemetry",
            "clock",
            "state",
            "transport",
            "message",
        ],
    ),
    (
        "control",
        &[
            "resilience",
            "policy",
            "telemetry",
            "clock",
            "state",
            "transport",
        ],
    ),
    (
        "admin",
        &["resilience", "policy", "telemetry", "clock", "state"],
    ),
    (
        "cli",
        &["policy", "telemetry", "clock", "state", "settings", "app"],
    ),
    (
        "app",
        &[
            "policy",
            "telemetry",
            "clock",
            "state",
            "settings",
            "proxy",
            "control",
            "admin",
        ],
    ),
];

fn layer(path: &Path) -> String {
    let relative = path.strip_prefix(Path::new(ROOT).join("src")).unwrap();
    let first = relative
        .components()
        .next()
        .unwrap()
        .as_os_str()
        .to_string_lossy()
        .into_owned();
    first.trim_end_matches(".rs").to_owned()
}

#[test]
fn imports_follow_the_matrix() {
    let layer_of = |module: &str| module.split('/').next().unwrap_or_default().to_owned();
    for (module, imported) in module_graph() {
        let own = layer_of(&module);
        if matches!(own.as_str(), "lib" | "main") {
            continue;
        }
        let (_, allowed) = IMPORT_MATRIX
            .iter()
            .find(|(layer, _)| *layer == own)
            .unwrap_or_else(|| panic!("the import matrix has no layer for {module}"));
        for other in imported {
            let layer = layer_of(&other);
            assert!(
                layer == own || allowed.contains(&layer.as_str()),
                "{module} imports {other}; see ARCHITECTURE.md"
            );
        }
    }
}

#[test]
fn external_crates_are_used_only_in_their_layers() {
    let table: &[(&str, &[&str])] = &[
        ("pingora::", &["proxy", "control", "transport"]),
        ("httparse::", &["proxy"]),
        ("h2::", &["proxy", "control"]),
        ("rustls::", &["proxy", "control", "state", "transport"]),
        ("x509_parser", &["transport"]),
        ("hickory_resolver", &["control"]),
        ("governor::", &["state"]),
        (
            "parking_lot::",
            &["control", "proxy", "state", "telemetry", "transport"],
        ),
        ("serde::", &["policy", "admin"]),
        ("serde_saphyr", &["policy"]),
        ("schemars", &["policy"]),
        ("axum::", &["admin", "cli"]),
        ("metrics_exporter_prometheus", &["telemetry"]),
        ("metrics::{Counter", &["telemetry"]),
        ("tracing_subscriber", &["telemetry"]),
        ("clap::", &["cli"]),
        ("notify::", &["control"]),
        ("tokio::time", &["clock"]),
        (
            "tokio::net",
            &["proxy", "control", "admin", "cli", "transport"],
        ),
        ("std::fs", &["policy", "control", "cli"]),
    ];
    for path in source_files(&Path::new(ROOT).join("src")) {
        let (own, text) = (layer(&path), fs::read_to_string(&path).unwrap());
        for (name, allowed) in table {
            let is_used = text
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .any(|line| {
                    line.contains(name)
                        && !line.contains(&format!("crate::{name}"))
                        && !line.contains(&format!("telemetry::{name}"))
                });
            assert!(
                !is_used || allowed.contains(&own.as_str()),
                "{} uses {name}",
                path.display()
            );
        }
    }
}

/// `rustc` gets no external crates, so an import of tokio, http, metrics or serde does not compile.
#[test]
fn resilience_compiles_with_std_alone() {
    let target =
        std::env::temp_dir().join(format!("outrigger-purity-{}.rmeta", std::process::id()));
    let mut rustc = Command::new("rustc")
        .args([
            "--edition",
            "2024",
            "--crate-type",
            "lib",
            "--emit=metadata",
            "-D",
            "warnings",
            "-o",
        ])
        .arg(&target)
        .arg("-")
        .current_dir(ROOT)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(
        &mut rustc.stdin.take().unwrap(),
        b"#[path = \"src/resilience/mod.rs\"] pub mod resilience;",
    )
    .unwrap();
    let output = rustc.wait_with_output().unwrap();
    // The file does not exist if the compilation failed.
    _ = fs::remove_file(target);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn resilience_reads_no_clock_takes_no_lock_and_logs_nothing() {
    for path in source_files(&Path::new(ROOT).join("src/resilience"))
        .iter()
        .filter(|path| !is_test_file(path))
    {
        let text = fs::read_to_string(path).unwrap();
        for word in [
            "SystemTime",
            "Instant::now",
            "Mutex",
            "RwLock",
            "Atomic",
            "println",
            "tracing",
            "thread::",
            "async ",
        ] {
            let is_used = text
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .any(|line| line.contains(word));
            assert!(
                !is_used || path.ends_with("mod.rs"),
                "{} uses {word}",
                path.display()
            );
        }
    }
}

#[test]
fn files_have_at_most_500_lines_and_module_documentation() {
    for path in source_files(&Path::new(ROOT).join("src")) {
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.lines().count() <= 500,
            "{} has over 500 lines",
            path.display()
        );
        assert!(
            is_test_file(&path) || text.starts_with("//!"),
            "{} has no module documentation",
            path.display()
        );
        for word in ["todo!", "unimplemented!", "FIXME", "TODO"] {
            assert!(!text.contains(word), "{} contains {word}", path.display());
        }
    }
}

#[test]
fn lines_of_code_have_at_most_100_columns() {
    for folder in ["src", "tests", "benches", "fuzz/targets"] {
        for path in source_files(&Path::new(ROOT).join(folder)) {
            let text = fs::read_to_string(&path).unwrap();
            for (index, line) in text.lines().enumerate() {
                assert!(
                    line.chars().count() <= 100,
                    "{}:{} has over 100 columns",
                    path.display(),
                    index + 1
                );
            }
        }
    }
}

/// Name of the type that a line defines, if it defines one outside of a block.
fn defined_type(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    let mut word = words.next()?;
    if line.starts_with(' ') {
        return None;
    }
    while word.starts_with("pub") || word.starts_with("crate") {
        word = words.next()?;
    }
    if !matches!(word, "struct" | "enum" | "trait" | "type") {
        return None;
    }
    let name = words.next()?;
    name.split(|character: char| !character.is_alphanumeric())
        .next()
}

#[test]
fn each_type_name_occurs_once() {
    let mut owners = std::collections::HashMap::new();
    for path in source_files(&Path::new(ROOT).join("src")) {
        if is_test_file(&path) {
            continue;
        }
        for line in fs::read_to_string(&path).unwrap().lines() {
            if let Some(name) = defined_type(line)
                && let Some(earlier) = owners.insert(name.to_owned(), path.clone())
            {
                panic!(
                    "{name} is in {} and in {}",
                    earlier.display(),
                    path.display()
                );
            }
        }
    }
}

fn read_document(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap()
}

#[test]
fn reasons_md_lists_exactly_the_reasons() {
    let document = read_document("docs/reasons.md");
    for reason in Reason::ALL {
        assert!(
            document.contains(&format!("| `{}` |", reason.token())),
            "docs/reasons.md does not list `{}`",
            reason.token()
        );
    }
    let rows = document.lines().filter(|line| line.starts_with("| `"));
    assert_eq!(
        rows.count(),
        Reason::ALL.len(),
        "docs/reasons.md lists a token that is not a reason"
    );
}

#[test]
fn architecture_md_has_the_rows_of_the_import_matrix() {
    let document = read_document("ARCHITECTURE.md");
    for (layer, allowed) in IMPORT_MATRIX {
        let row = format!(
            "| {layer} | {} |",
            if allowed.is_empty() {
                "-".to_owned()
            } else {
                allowed.join(", ")
            }
        );
        assert!(
            document.contains(&row),
            "ARCHITECTURE.md lacks the row {row}"
        );
    }
}

#[test]
fn the_readme_lists_every_command() {
    let document = read_document("README.md");
    let output = Command::new(env!("CARGO_BIN_EXE_outrigger"))
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let commands = help
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| line.starts_with("  "));
    for command in commands
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
    {
        assert!(
            document.contains(&format!("`outrigger {command}")),
            "README.md does not list `outrigger {command}`"
        );
    }
}

#[test]
fn the_policy_reference_describes_every_property_of_the_schema() {
    let document = read_document("docs/policy-reference.md");
    let schema = outrigger::policy::json_schema();
    for (definition, body) in schema["$defs"].as_object().unwrap() {
        for property in body["properties"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, _)| name)
        {
            assert!(
                document.contains(&format!("`{property}`")),
                "docs/policy-reference.md does not describe `{property}` of {definition}"
            );
        }
    }
}
