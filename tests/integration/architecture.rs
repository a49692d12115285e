//! The rules of ARCHITECTURE.md, kept by a machine.

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

fn is_test(path: &Path) -> bool {
    path.file_stem().is_some_and(|stem| stem == "tests")
}

/// Who may import whom; the same table as in ARCHITECTURE.md.
const IMPORT_MATRIX: &[(&str, &[&str])] = &[
    ("resilience", &[]),
    ("policy", &["resilience"]),
    ("telemetry", &["resilience"]),
    ("clock", &[]),
    ("settings", &[]),
    ("transport", &["policy"]),
    ("state", &["resilience", "policy", "telemetry"]),
    (
        "proxy",
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
    let first = |module: &str| module.split('/').next().unwrap_or_default().to_owned();
    for (module, imported) in module_graph() {
        let own = first(&module);
        if matches!(own.as_str(), "lib" | "main") {
            continue;
        }
        let (_, allowed) = IMPORT_MATRIX
            .iter()
            .find(|(layer, _)| *layer == own)
            .unwrap_or_else(|| panic!("{module} is in no layer"));
        for other in imported {
            let layer = first(&other);
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
        ("h2::", &["proxy", "control"]),
        ("rustls::", &["proxy", "control", "state", "transport"]),
        ("x509_parser", &["transport"]),
        ("hickory_resolver", &["control"]),
        ("governor::", &["state"]),
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

/// Without any crate on the path, an import of tokio, http, metrics or serde cannot compile.
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
    let done = rustc.wait_with_output().unwrap();
    // It need not be there if the compiler refused.
    _ = fs::remove_file(target);
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

#[test]
fn resilience_reads_no_clock_takes_no_lock_and_logs_nothing() {
    for path in source_files(&Path::new(ROOT).join("src/resilience"))
        .iter()
        .filter(|path| !is_test(path))
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
                "{} has {word}",
                path.display()
            );
        }
    }
}

#[test]
fn files_have_at_most_600_lines_and_module_documentation() {
    for path in source_files(&Path::new(ROOT).join("src")) {
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.lines().count() <= 600,
            "{} has over 600 lines",
            path.display()
        );
        assert!(
            is_test(&path) || text.starts_with("//!"),
            "{} does not say what it decides",
            path.display()
        );
        for word in ["todo!", "unimplemented!", "FIXME", "TODO"] {
            assert!(!text.contains(word), "{} has {word}", path.display());
        }
    }
}

#[test]
fn documents_match_the_reasons_the_matrix_the_commands_and_the_schema() {
    let reasons = fs::read_to_string(Path::new(ROOT).join("docs/reasons.md")).unwrap();
    for reason in Reason::ALL {
        assert!(
            reasons.contains(&format!("| `{}` |", reason.token())),
            "{} is not in docs/reasons.md",
            reason.token()
        );
    }
    let rows = reasons
        .lines()
        .filter(|line| line.starts_with("| `"))
        .count();
    assert_eq!(
        rows,
        Reason::ALL.len(),
        "docs/reasons.md has a token that is none"
    );

    let architecture = fs::read_to_string(Path::new(ROOT).join("ARCHITECTURE.md")).unwrap();
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
            architecture.contains(&row),
            "ARCHITECTURE.md lacks the row {row}"
        );
    }

    let help = Command::new(env!("CARGO_BIN_EXE_outrigger"))
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let readme = fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
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
            readme.contains(&format!("`outrigger {command}")),
            "README.md does not know `outrigger {command}`"
        );
    }

    let reference = fs::read_to_string(Path::new(ROOT).join("docs/policy-reference.md")).unwrap();
    let schema = outrigger::policy::json_schema();
    for (definition, body) in schema["$defs"].as_object().unwrap() {
        for property in body["properties"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, _)| name)
        {
            assert!(
                reference.contains(&format!("`{property}`")),
                "docs/policy-reference.md does not know `{property}` of {definition}"
            );
        }
    }
}
