//! The manifests: that their policies are good, and that their times fit together.

use std::{path::Path, process::Command};

use serde_json::Value;

use crate::support::Directory;

fn documents(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(name);
    serde_saphyr::from_multiple(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn of_kind<'d>(documents: &'d [Value], kind: &str) -> &'d Value {
    documents
        .iter()
        .find(|document| document["kind"] == kind)
        .unwrap_or_else(|| panic!("no {kind}"))
}

fn seconds(value: &Value) -> u64 {
    value
        .as_str()
        .and_then(|text| text.strip_suffix('s'))
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| panic!("{value} is no number of seconds"))
}

fn named<'c>(containers: &'c Value, name: &str) -> Option<&'c Value> {
    containers
        .as_array()?
        .iter()
        .find(|container| container["name"] == name)
}

#[test]
fn the_policies_of_the_manifests_are_good_and_their_times_fit_together() {
    for name in ["native-sidecar.yaml", "older-clusters.yaml"] {
        let documents = documents(name);
        let text = of_kind(&documents, "ConfigMap")["data"]["default.yaml"]
            .as_str()
            .unwrap();
        let directory = Directory::new();
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
            &of_kind(&documents, "Deployment")["spec"],
        );
        let pod = &deployment["template"]["spec"];
        let drain = seconds(&lifecycle["drain"]["timeout"]);
        assert!(
            pod["terminationGracePeriodSeconds"].as_u64().unwrap() >= drain + 10,
            "{name}: the app has no time to end"
        );
        assert!(
            seconds(&lifecycle["drain"]["softTimeout"]) < drain,
            "{name}"
        );
        assert!(
            deployment["minReadySeconds"].as_u64().unwrap()
                >= seconds(&lifecycle["warmUp"]["window"]),
            "{name}: old pods leave before new ones are warm"
        );
        assert_eq!(
            deployment["strategy"]["rollingUpdate"]["maxUnavailable"], 0,
            "{name}"
        );
        let is_native = name == "native-sidecar.yaml";
        let sidecar = named(
            &pod[if is_native {
                "initContainers"
            } else {
                "containers"
            }],
            "outrigger",
        )
        .unwrap();
        assert_eq!(sidecar["restartPolicy"] == "Always", is_native, "{name}");
        let drains: Vec<&str> = sidecar["lifecycle"]["preStop"]["exec"]["command"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        assert_eq!(
            drains,
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
        let app = named(&pod["containers"], "app").unwrap();
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
fn the_sidecar_of_a_job_is_told_that_the_job_is_done() {
    let documents = documents("job.yaml");
    let containers = &of_kind(&documents, "Job")["spec"]["template"]["spec"]["containers"];
    let command = named(containers, "reconcile").unwrap()["args"].to_string();
    assert!(
        named(containers, "outrigger").is_some()
            && command.contains("/quitquitquit")
            && command.contains("exit $code"),
        "{command}"
    );
}
