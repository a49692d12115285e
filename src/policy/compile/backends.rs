//! Backends: their endpoints, balancers and health checks.

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use super::{At, Compiler};
use crate::{
    policy::{
        document::{ActiveCheck, ActiveCheckType, Backend, LoadBalancerType},
        snapshot::{BackendSpec, Balancer, CheckSpec, EndpointSpec, ProbeSpec},
        units::StatusRange,
    },
    resilience::health::HealthConfig,
};

/// A backend that was made, and the name of its policy.
pub(super) struct MadeBackend<'a> {
    pub(super) spec: BackendSpec,
    pub(super) policy: Option<&'a str>,
}

impl<'a> Compiler<'a> {
    pub(super) fn backends(&mut self) -> Vec<(At<'a>, MadeBackend<'a>)> {
        let mut seen = HashMap::new();
        let mut backends = Vec::new();
        for (at, backend) in self.each("backends", |document| document.spec.backends.as_slice()) {
            self.check_name(&at.key("name"), "backend", &backend.name, &mut seen);
            let spec = self.backend(&at, backend);
            backends.push((at, MadeBackend { spec, policy: backend.policy.as_deref() }));
        }
        backends
    }

    fn backend(&mut self, at: &At<'a>, backend: &Backend) -> BackendSpec {
        let balancer = match backend.load_balancer.as_ref().map(|balancer| balancer.kind) {
            None | Some(LoadBalancerType::LeastRequest) => Balancer::LeastRequest,
            Some(LoadBalancerType::RoundRobin) => Balancer::RoundRobin,
        };
        let health = backend.health_check.as_ref();
        let panic_threshold = health.and_then(|health| health.panic_threshold).unwrap_or(50);
        if panic_threshold > 100 {
            self.error(&at.key("healthCheck").key("panicThreshold"), "a percentage is at most 100").hint("0 switches it off, 50 is the default");
        }
        let check = health.and_then(|health| health.active.as_ref());
        BackendSpec {
            name: Arc::from(backend.name.as_str()),
            endpoints: self.endpoints(&at.key("endpoints"), backend),
            balancer,
            panic_threshold,
            check: check.and_then(|check| self.active_check(&at.key("healthCheck").key("active"), check)),
        }
    }

    fn endpoints(&mut self, at: &At<'a>, backend: &Backend) -> Vec<EndpointSpec> {
        if backend.endpoints.is_empty() {
            self.error(at, format!("the backend `{}` has no endpoints", backend.name)).hint("write at least one address, like `[\"127.0.0.1:8080\"]`");
        }
        let mut seen = HashSet::new();
        let mut endpoints = Vec::new();
        for (index, entry) in backend.endpoints.iter().enumerate() {
            let at = at.index(index);
            let Ok(address) = entry.0.address.parse() else {
                let hint = "write an IP address and a port, like `127.0.0.1:8080`; names are not resolved by this version";
                self.error(&at, format!("`{}` is not an endpoint", entry.0.address)).hint(hint);
                continue;
            };
            let Some(weight) = NonZeroU32::new(entry.0.weight) else {
                self.error(&at.key("weight"), "an endpoint without weight would never be picked").hint("take it out, or write a weight of at least 1");
                continue;
            };
            if !seen.insert(address) {
                self.error(&at, format!("the endpoint {address} is given twice")).hint("use `weight` to give it a larger share");
            }
            if weight.get() > 1 && backend.load_balancer.as_ref().is_some_and(|balancer| balancer.kind == LoadBalancerType::RoundRobin) {
                self.error(&at.key("weight"), "RoundRobin gives every endpoint the same share").hint("take `weight` out, or use LeastRequest, which heeds it");
            }
            endpoints.push(EndpointSpec { address, weight });
        }
        endpoints
    }

    fn active_check(&mut self, at: &At<'a>, check: &ActiveCheck) -> Option<CheckSpec> {
        let interval = check.interval.map_or(Duration::from_secs(5), |span| span.0);
        let timeout = check.timeout.map_or(Duration::from_secs(1), |span| span.0);
        if interval < Duration::from_millis(10) {
            self.error(&at.key("interval"), "the time between two checks is at least 10ms").hint("5s is the default");
        }
        if timeout.is_zero() {
            self.error(&at.key("timeout"), "a check needs time").hint("1s is the default");
        }
        let mut threshold = |key: &str, value: Option<u32>, default: u32| {
            NonZeroU32::new(value.unwrap_or(default)).unwrap_or_else(|| {
                self.error(&at.key(key), format!("`{key}` is at least 1")).hint(format!("{default} is the default"));
                NonZeroU32::MIN
            })
        };
        let thresholds = HealthConfig {
            unhealthy_threshold: threshold("unhealthyThreshold", check.unhealthy_threshold, 3),
            healthy_threshold: threshold("healthyThreshold", check.healthy_threshold, 2),
        };
        let probe = match (check.kind, &check.http) {
            (ActiveCheckType::HTTP, Some(http)) => {
                if !http.path.starts_with('/') || !http.path.bytes().all(|byte| byte.is_ascii_graphic()) {
                    self.error(&at.key("http").key("path"), format!("`{}` is not a path", http.path)).hint("a path begins with `/` and has no spaces");
                }
                if http.host.as_ref().is_some_and(|host| host.is_empty() || !host.bytes().all(|byte| byte.is_ascii_graphic())) {
                    self.error(&at.key("http").key("host"), "this is not a host").hint("write a name, and a port where it is needed");
                }
                let all_good = [StatusRange::of(200, 399)];
                let expected = http.expected_statuses.as_deref().unwrap_or(&all_good).iter().collect();
                ProbeSpec::Http { path: http.path.clone(), host: http.host.clone(), expected }
            }
            (ActiveCheckType::TCP, None) => ProbeSpec::Tcp,
            (ActiveCheckType::HTTP, None) => {
                self.error(at, "a check of type HTTP needs `http`").hint("add `http: {path: /healthz}`");
                return None;
            }
            (ActiveCheckType::TCP, Some(_)) => {
                self.error(&at.key("http"), "a check of type TCP only connects").hint("write `type: HTTP`, or take `http` out");
                return None;
            }
        };
        Some(CheckSpec { probe, interval, timeout, thresholds })
    }
}
