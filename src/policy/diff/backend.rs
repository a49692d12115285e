//! Differences between two versions of a backend and its endpoints.

use std::collections::HashMap;

use crate::policy::{
    diff::changes::Changes,
    snapshot::{BackendSpec, Discovery, EndpointAddress, EndpointSpec},
};

pub(super) fn diff(old: &BackendSpec, new: &BackendSpec, changes: &mut Changes) {
    match (&old.discovery, &new.discovery) {
        (Discovery::Static(before), Discovery::Static(after)) => {
            diff_endpoints(before, after, changes);
        }
        (before, after) if before != after => {
            changes.push(format!("endpoints {before} -> {after}"));
        }
        _ => {}
    }
    changes.value("protocol", &old.protocol, &new.protocol);
    changes.hidden(
        "tls",
        &old.tls,
        &new.tls,
        "it applies to new connections, and idle connections are closed",
    );
    changes.value("loadBalancer", &old.load_balancer, &new.load_balancer);
    changes.hidden("slowStart", &old.warm_up, &new.warm_up, "");
    changes.optional(
        "zoneAware.minEndpointsInZoneThreshold",
        old.min_endpoints_in_zone.as_ref(),
        new.min_endpoints_in_zone.as_ref(),
    );
    changes.value(
        "panicThreshold",
        &old.panic_threshold_percent,
        &new.panic_threshold_percent,
    );
    let mode = |backend: &BackendSpec| backend.outlier_detection.map(|outlier| outlier.mode);
    changes.hidden(
        "outlierDetection",
        &old.outlier_detection,
        &new.outlier_detection,
        if mode(old) == mode(new) {
            "ejected endpoints stay ejected"
        } else {
            "all ejections end"
        },
    );
    changes.hidden(
        "healthCheck",
        &old.active_check,
        &new.active_check,
        match (&old.active_check, &new.active_check) {
            (_, None) => "all endpoints count as healthy",
            (None, Some(_)) => "",
            (Some(_), Some(_)) => "the health of the endpoints is retained",
        },
    );
}

/// Returns one line per endpoint that is added, removed, or changed in weight, zone or priority.
#[must_use]
pub fn describe_endpoint_changes(before: &[EndpointSpec], after: &[EndpointSpec]) -> Vec<String> {
    let mut changes = Changes::default();
    diff_endpoints(before, after, &mut changes);
    changes.into_lines("").collect()
}

fn diff_endpoints(before: &[EndpointSpec], after: &[EndpointSpec], changes: &mut Changes) {
    let (old, new) = (index_by_address(before), index_by_address(after));
    for endpoint in before {
        if !new.contains_key(&endpoint.address) {
            changes.push(format!(
                "endpoint {} removed; its requests in flight finish",
                endpoint.address
            ));
        }
    }
    for endpoint in after {
        let address = &endpoint.address;
        let Some(earlier) = old.get(address) else {
            changes.push(format!("endpoint {address} added"));
            continue;
        };
        changes.value(
            &format!("endpoint {address} weight"),
            &earlier.weight,
            &endpoint.weight,
        );
        changes.optional(
            &format!("endpoint {address} zone"),
            earlier.zone.as_ref(),
            endpoint.zone.as_ref(),
        );
        changes.value(
            &format!("endpoint {address} priority"),
            &earlier.priority,
            &endpoint.priority,
        );
    }
}

fn index_by_address(endpoints: &[EndpointSpec]) -> HashMap<&EndpointAddress, &EndpointSpec> {
    endpoints
        .iter()
        .map(|endpoint| (&endpoint.address, endpoint))
        .collect()
}
