//! Diagnostics of policy files, with their location and fix, and the JSON schema.

use std::{collections::HashMap, path::PathBuf};

use outrigger::policy::{
    self,
    source::{PolicyFile, PolicySource},
};

use crate::support::policy::policy;

fn invalid_policies_directory() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/data/policies/invalid"
    ))
}

fn diagnose(files: &[(&str, &str)]) -> String {
    let files = files
        .iter()
        .map(|(name, text)| PolicyFile {
            name: (*name).into(),
            text: (*text).to_owned(),
        })
        .collect();
    match policy::load_source(&PolicySource::from_files(files), &HashMap::new()) {
        Ok(loaded) => loaded.warnings.to_human(),
        Err(faults) => faults.to_human(),
    }
}

/// The expected texts are beside the files, in the format of `outrigger check`.
#[test]
fn each_invalid_policy_matches_its_golden_diagnostics() {
    let mut files: Vec<PathBuf> = std::fs::read_dir(invalid_policies_directory())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    assert!(files.len() >= 12);
    for path in files {
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let expected = std::fs::read_to_string(path.with_extension("txt")).unwrap();
        assert_eq!(diagnose(&[(name, &text)]).trim(), expected.trim(), "{name}");
    }
}

#[test]
fn the_errors_of_all_files_are_reported_together() {
    let valid = policy(&["127.0.0.1:1".parse().unwrap()], "");
    let report = diagnose(&[
        ("a.yaml", "nonsense: 1\n"),
        ("b.yaml", &valid),
        ("c.yaml", "more: [\n"),
        ("d.yaml", "kind: Other\n"),
    ]);
    for expected in [
        "a.yaml:1:1",
        "unknown key `nonsense`",
        "c.yaml:",
        "not YAML",
        "d.yaml:1:7",
    ] {
        assert!(report.contains(expected), "{expected} in {report}");
    }
    assert!(!report.contains("b.yaml"), "{report}");
}

/// In YAML, a line ends with a carriage return, a line feed or both.
#[test]
fn a_location_is_shown_with_its_source_line_for_every_line_ending() {
    for line_ending in ["\n", "\r\n", "\r"] {
        let report = diagnose(&[(
            "a.yaml",
            &[
                "# comment",
                "apiVersion: outrigger.dev/v1alpha1",
                "kind: Other",
                "",
            ]
            .join(line_ending),
        )]);
        assert!(
            report.contains("a.yaml:3:7") && report.contains("3 | kind: Other\n"),
            "{line_ending:?}: {report}"
        );
    }
}

#[test]
fn a_duplicate_name_is_rejected_with_both_locations() {
    let text = policy(&["127.0.0.1:1".parse().unwrap()], "");
    let report = diagnose(&[("a.yaml", &text), ("b.yaml", &text)]);
    assert!(
        report.contains("b.yaml:8:14") && report.contains("the other is at a.yaml:8"),
        "{report}"
    );
}

#[test]
fn an_empty_policy_set_is_rejected() {
    assert!(diagnose(&[("a.yaml", "")]).contains("there is no policy in it"));
    assert!(
        diagnose(&[(
            "a.yaml",
            "apiVersion: outrigger.dev/v1alpha1\nkind: ResiliencePolicy\nmetadata: {name: a}\n"
        )])
        .contains("no listener")
    );
}

#[test]
fn environment_values_are_substituted_and_never_reported() {
    let text = policy(
        &["127.0.0.1:1".parse().unwrap()],
        concat!(
            "  recovery:\n",
            "    - name: r\n",
            "      trigger: {type: CircuitOpenFor, backend: app, duration: 1m}\n",
            "      ladder:\n",
            "        - action:\n",
            "            type: Webhook\n",
            "            url: ${HOOK}\n"
        ),
    );
    let source = PolicySource::from_text("a.yaml", text);
    let environment = HashMap::from([("HOOK".to_owned(), "https://hooks/secret".to_owned())]);
    let faults = policy::load_source(&source, &environment)
        .unwrap_err()
        .to_human();
    assert!(
        faults.contains("`${HOOK}` is not an address that can be called")
            && !faults.contains("secret"),
        "{faults}"
    );
}

#[test]
fn the_schema_accepts_the_example_policies_and_rejects_an_unknown_key() {
    let validator = jsonschema::validator_for(&policy::json_schema()).unwrap();
    for entry in
        std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/policies/examples")).unwrap()
    {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let value: serde_json::Value = serde_saphyr::from_str(
            &text.replace("${OPS_WEBHOOK:-http://127.0.0.1:9009/hook}", "http://a/"),
        )
        .unwrap();
        let faults: Vec<String> = validator
            .iter_errors(&value)
            .map(|fault| fault.to_string())
            .collect();
        assert!(faults.is_empty(), "{}: {faults:?}", path.display());
    }
    let with_unknown_key = serde_json::json!({
        "apiVersion": "outrigger.dev/v1alpha1",
        "kind": "ResiliencePolicy",
        "metadata": {"name": "a"},
        "spec": {"rowts": []}
    });
    assert!(!validator.is_valid(&with_unknown_key));
}
