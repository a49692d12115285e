//! The manifests: that their policies are good, and that their times fit together.

use std::{path::Path, process::Command};

use serde_json::Value;

use crate::support::TempDirectory;

fn read_manifest(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(name);
    serde_saphyr::from_multiple(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn find_kind<'d>(documents: &'d [Value], kind: &str) -> &'d Value {
    documents
        .iter()
        .find(|document| document["kind"] == kind)
        .unwrap_or_else(|| panic!("no {kind}"))
}

fn parse_seconds(value: &Value) -> u64 {
    value
        .as_str()
        .and_then(|text| text.strip_suffix('s'))
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| panic!("{value} is no number of seconds"))
}

fn find_container<'c>(containers: &'c Value, name: &str) -> Option<&'c Value> {
    containers
        .as_array()?
        .iter()
        .find(|container| container["name"] == name)
}

#[test]
fn the_manifests_have_valid_policies_and_consistent_timeouts() {
    for name in ["native-sidecar.yaml", "older-clusters.yaml"] {
        let documents = read_manifest(name);
        let text = find_kind(&documents, "ConfigMap")["data"]["default.yaml"]
            .as_str()
            .unwrap();
        let directory = TempDirectory::new();
        directory.write("default.yaml", text);
        let checked = Command::new(env!("CARGO_BIN_EXE_outrigger"))
            .args(["check", &directory.path().display().to_string()])
            .output()
            .unwrap();
        assert!(
            checked.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&checked.stderr)
        );
        let policy: Value = serde_saphyr::from_str(text).unwrap();
        let (lifecycle, deployment) = (
            &policy["spec"]["lifecycle"],
            &find_kind(&documents, "Deployment")["spec"],
        );
        let pod = &deployment["template"]["spec"];
        let drain = parse_seconds(&lifecycle["drain"]["timeout"]);
        assert!(
            pod["terminationGracePeriodSeconds"].as_u64().unwrap() >= drain + 10,
            "{name}: the app has no time to end"
        );
        assert!(
            parse_seconds(&lifecycle["drain"]["softTimeout"]) < drain,
            "{name}"
        );
        assert!(
            deployment["minReadySeconds"].as_u64().unwrap()
                >= parse_seconds(&lifecycle["warmUp"]["window"]),
            "{name}: old pods leave before new ones are warm"
        );
        assert_eq!(
            deployment["strategy"]["rollingUpdate"]["maxUnavailable"], 0,
            "{name}"
        );
        let is_native = name == "native-sidecar.yaml";
        let sidecar = find_container(
            &pod[if is_native {
                "initContainers"
            } else {
                "containers"
            }],
            "outrigger",
        )
        .unwrap();
        assert_eq!(sidecar["restartPolicy"] == "Always", is_native, "{name}");
        let drain_command: Vec<&str> = sidecar["lifecycle"]["preStop"]["exec"]["command"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        assert_eq!(
            drain_command,
            if is_native {
                vec!["/outrigger", "drain"]
            } else {
                vec!["/outrigger", "drain", "--until-app-ends"]
            },
            "{name}"
        );
        for (probe, path) in [
            ("startupProbe", "/startupz"),
            ("readinessProbe", "/readyz"),
            ("livenessProbe", "/livez"),
        ] {
            assert_eq!(sidecar[probe]["httpGet"]["path"], path, "{name}");
        }
        let app = find_container(&pod["containers"], "app").unwrap();
        assert_eq!(
            app["lifecycle"]["preStop"]["httpGet"]["path"], "/drained",
            "{name}: the app lives as long as it is called"
        );
        assert_eq!(
            app["livenessProbe"]["httpGet"]["path"], "/app-health/livez",
            "{name}"
        );
    }
}

#[test]
fn the_job_manifest_calls_quitquitquit_when_the_job_ends() {
    let documents = read_manifest("job.yaml");
    let containers = &find_kind(&documents, "Job")["spec"]["template"]["spec"]["containers"];
    let command = find_container(containers, "reconcile").unwrap()["args"].to_string();
    assert!(
        find_container(containers, "outrigger").is_some()
            && command.contains("/quitquitquit")
            && command.contains("exit $code"),
        "{command}"
    );
}
