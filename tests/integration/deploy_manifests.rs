//! The manifests of `deploy/`: valid policies, consistent timeouts, probes and hooks.

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
        .unwrap_or_else(|| panic!("the manifest has no {kind}"))
}

fn parse_seconds(value: &Value) -> u64 {
    value
        .as_str()
        .and_then(|text| text.strip_suffix('s'))
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| panic!("{value} is not a number of seconds"))
}

fn find_container<'c>(containers: &'c Value, name: &str) -> Option<&'c Value> {
    containers
        .as_array()?
        .iter()
        .find(|container| container["name"] == name)
}

/// Manifest of an app with a sidecar.
struct SidecarManifest {
    name: &'static str,
    policy_text: String,
    policy: Value,
    deployment: Value,
}

impl SidecarManifest {
    fn read(name: &'static str) -> Self {
        let documents = read_manifest(name);
        let policy_text = find_kind(&documents, "ConfigMap")["data"]["default.yaml"]
            .as_str()
            .unwrap();
        Self {
            name,
            policy: serde_saphyr::from_str(policy_text).unwrap(),
            policy_text: policy_text.to_owned(),
            deployment: find_kind(&documents, "Deployment")["spec"].clone(),
        }
    }

    fn read_all() -> [Self; 2] {
        ["native-sidecar.yaml", "older-clusters.yaml"].map(Self::read)
    }

    /// Whether the sidecar is an init container that always restarts (Kubernetes 1.29).
    fn is_native(&self) -> bool {
        self.name == "native-sidecar.yaml"
    }

    fn lifecycle(&self) -> &Value {
        &self.policy["spec"]["lifecycle"]
    }

    fn pod(&self) -> &Value {
        &self.deployment["template"]["spec"]
    }

    fn sidecar(&self) -> &Value {
        let list = if self.is_native() {
            "initContainers"
        } else {
            "containers"
        };
        find_container(&self.pod()[list], "outrigger").unwrap()
    }
}

#[test]
fn the_policies_of_the_manifests_are_valid() {
    for manifest in SidecarManifest::read_all() {
        let directory = TempDirectory::new();
        directory.write("default.yaml", &manifest.policy_text);
        let output = Command::new(env!("CARGO_BIN_EXE_outrigger"))
            .args(["check", &directory.path().display().to_string()])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}: {}",
            manifest.name,
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn the_timeouts_of_pod_and_policy_are_consistent() {
    for manifest in SidecarManifest::read_all() {
        let (name, lifecycle) = (manifest.name, manifest.lifecycle());
        let (deployment, pod) = (&manifest.deployment, manifest.pod());
        let drain_timeout = parse_seconds(&lifecycle["drain"]["timeout"]);
        assert!(
            pod["terminationGracePeriodSeconds"].as_u64().unwrap() >= drain_timeout + 10,
            "{name}: the app has no time to end"
        );
        assert!(
            parse_seconds(&lifecycle["drain"]["softTimeout"]) < drain_timeout,
            "{name}"
        );
        assert!(
            deployment["minReadySeconds"].as_u64().unwrap()
                >= parse_seconds(&lifecycle["warmUp"]["window"]),
            "{name}: old pods drain before new ones are warm"
        );
        assert_eq!(
            deployment["strategy"]["rollingUpdate"]["maxUnavailable"], 0,
            "{name}"
        );
    }
}

#[test]
fn the_sidecar_container_drains_before_it_stops_and_has_all_probes() {
    for manifest in SidecarManifest::read_all() {
        let (name, sidecar) = (manifest.name, manifest.sidecar());
        assert_eq!(
            sidecar["restartPolicy"] == "Always",
            manifest.is_native(),
            "{name}"
        );
        let drain_command: Vec<&str> = sidecar["lifecycle"]["preStop"]["exec"]["command"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        assert_eq!(
            drain_command,
            if manifest.is_native() {
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
    }
}

#[test]
fn the_app_container_stops_after_the_sidecar_is_drained() {
    for manifest in SidecarManifest::read_all() {
        let name = manifest.name;
        let app = find_container(&manifest.pod()["containers"], "app").unwrap();
        assert_eq!(
            app["lifecycle"]["preStop"]["httpGet"]["path"], "/drained",
            "{name}: the app runs until no request is in flight"
        );
        assert_eq!(
            app["livenessProbe"]["httpGet"]["path"], "/app-health/livez",
            "{name}"
        );
    }
}

#[test]
fn the_job_manifest_calls_quitquitquit_after_the_command() {
    let documents = read_manifest("job.yaml");
    let containers = &find_kind(&documents, "Job")["spec"]["template"]["spec"]["containers"];
    let arguments = find_container(containers, "reconcile").unwrap()["args"].to_string();
    assert!(
        find_container(containers, "outrigger").is_some()
            && arguments.contains("/quitquitquit")
            && arguments.contains("exit $code"),
        "{arguments}"
    );
}
