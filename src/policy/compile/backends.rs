//! Compiles backends: the source of their endpoints, and their DNS settings.
//!
//! A backend has exactly one source: a list, a DNS name or a file. Names are not resolved and
//! files are not read here. The other sections of a backend are compiled in `balancing`,
//! `health` and `tls`.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use crate::policy::{
    compile::compiler::Compiler,
    document::{BackendEntry, Dns, DnsType, EndpointEntry, EndpointFields},
    endpoints,
    report::FieldLocation,
    snapshot::{BackendSpec, Discovery, DnsSpec, EndpointSpec},
    units::{PolicyDuration, duration_or},
};

/// Compiled backend, with the name of the policy that it refers to.
pub(super) struct CompiledBackend<'a> {
    pub(super) spec: BackendSpec,
    pub(super) policy_name: Option<&'a str>,
}

impl<'a> Compiler<'a> {
    pub(super) fn compile_backends(&mut self) -> Vec<(FieldLocation<'a>, CompiledBackend<'a>)> {
        let mut seen = HashMap::new();
        let mut backends = Vec::new();
        for (at, backend) in
            self.collect_items("backends", |document| document.spec.backends.as_slice())
        {
            self.report
                .check_name(&at.key("name"), "backend", &backend.name, &mut seen);
            let spec = self.compile_backend(&at, backend);
            backends.push((
                at,
                CompiledBackend {
                    spec,
                    policy_name: backend.policy.as_deref(),
                },
            ));
        }
        backends
    }

    fn compile_backend(&mut self, at: &FieldLocation<'_>, backend: &BackendEntry) -> BackendSpec {
        let health = backend.health_check.as_ref();
        let panic_threshold = health
            .and_then(|health| health.panic_threshold)
            .unwrap_or(50);
        if panic_threshold > 100 {
            self.report
                .error(
                    &at.key("healthCheck").key("panicThreshold"),
                    "a percentage must be at most 100",
                )
                .hint("0 switches it off, 50 is the default");
        }
        let check = health.and_then(|health| health.active.as_ref());
        let protocol = Self::compile_backend_protocol(backend.protocol);
        let balancing =
            self.compile_load_balancing(&at.key("loadBalancer"), backend.load_balancer.as_ref());
        BackendSpec {
            name: Arc::from(backend.name.as_str()),
            discovery: self.compile_discovery(at, backend),
            protocol,
            tls: backend
                .tls
                .as_ref()
                .and_then(|tls| self.compile_backend_tls(&at.key("tls"), tls, protocol)),
            load_balancer: balancing.load_balancer,
            warm_up: balancing.warm_up,
            min_endpoints_in_zone: balancing.min_endpoints_in_zone,
            panic_threshold_percent: panic_threshold,
            active_check: check.and_then(|check| {
                self.compile_active_check(&at.key("healthCheck").key("active"), check)
            }),
            outlier_detection: backend.outlier_detection.as_ref().and_then(|section| {
                self.compile_outlier_detection(&at.key("outlierDetection"), section)
            }),
        }
    }

    fn compile_discovery(&mut self, at: &FieldLocation<'_>, backend: &BackendEntry) -> Discovery {
        match (&backend.endpoints, &backend.dns, &backend.endpoints_file) {
            (Some(entries), None, None) => Discovery::Static(self.compile_static_endpoints(
                &at.key("endpoints"),
                backend,
                entries,
            )),
            (None, Some(dns), None) => Discovery::Dns(self.compile_dns(&at.key("dns"), dns)),
            (None, None, Some(path)) => {
                if path.is_empty() {
                    self.report
                        .error(&at.key("endpointsFile"), "this is not the path of a file")
                        .hint("write the path of a file with a list of endpoints");
                }
                Discovery::File(PathBuf::from(path))
            }
            (None, None, None) => {
                self.report
                    .error(
                        at,
                        format!("the backend `{}` has no endpoints", backend.name),
                    )
                    .hint(
                        "write `endpoints: [\"127.0.0.1:8080\"]`, or find them by `dns` or \
                           `endpointsFile`",
                    );
                Discovery::Static(Vec::new())
            }
            _ => {
                self.report
                    .error(
                        at,
                        format!(
                            "the endpoints of the backend `{}` come from several sources",
                            backend.name
                        ),
                    )
                    .hint("keep one of `endpoints`, `dns` and `endpointsFile`");
                Discovery::Static(Vec::new())
            }
        }
    }

    fn compile_static_endpoints(
        &mut self,
        at: &FieldLocation<'_>,
        backend: &BackendEntry,
        entries: &[EndpointEntry],
    ) -> Vec<EndpointSpec> {
        if entries.is_empty() {
            self.report
                .error(
                    at,
                    format!("the backend `{}` has no endpoints", backend.name),
                )
                .hint("write at least one address, like `[\"127.0.0.1:8080\"]`");
        }
        let mut seen = HashSet::new();
        let mut compiled = Vec::new();
        for (index, EndpointEntry(endpoint)) in entries.iter().enumerate() {
            let at = at.index(index);
            if let Some(spec) = self.compile_endpoint(&at, endpoint) {
                if !seen.insert(spec.address.clone()) {
                    self.report
                        .error(&at, format!("the endpoint {} is given twice", spec.address))
                        .hint("use `weight` to give it a larger share");
                }
                compiled.push(spec);
            }
        }
        compiled
    }

    fn compile_endpoint(
        &mut self,
        at: &FieldLocation<'_>,
        endpoint: &EndpointFields,
    ) -> Option<EndpointSpec> {
        let compiled = endpoints::compile_endpoint(endpoint);
        let report = |fault: endpoints::InvalidEndpoint| {
            let at = fault.key.map_or_else(|| at.clone(), |key| at.key(key));
            self.report.error(&at, fault.message).hint(fault.hint);
        };
        compiled.map_err(report).ok()
    }

    fn compile_dns(&mut self, at: &FieldLocation<'_>, dns: &Dns) -> DnsSpec {
        if !endpoints::is_dns_name(&dns.name) {
            let hint = "write a name like `pay.shop.svc.cluster.local.`; for addresses there is \
                        `endpoints`";
            self.report
                .error(
                    &at.key("name"),
                    format!("`{}` is not a name that can be resolved", dns.name),
                )
                .hint(hint);
        }
        match (dns.kind.unwrap_or(DnsType::A), dns.port) {
            (DnsType::A, None | Some(0)) => self
                .report
                .error(at, "A records contain no port")
                .hint("add `port:`, or use `type: SRV`, whose records contain it"),
            (DnsType::SRV, Some(_)) => self
                .report
                .error(&at.key("port"), "SRV records contain the port")
                .hint("remove `port`, or use `type: A`"),
            (DnsType::A, Some(_)) | (DnsType::SRV, None) => {}
        }
        let min_ttl = duration_or(dns.min_ttl, Duration::from_secs(1));
        let max_ttl = duration_or(dns.max_ttl, Duration::from_secs(30));
        if min_ttl < Duration::from_millis(10) {
            self.report
                .error(&at.key("minTtl"), "`minTtl` must be at least 10ms")
                .hint("1s is the default");
        }
        if max_ttl < min_ttl {
            self.report
                .error(&at.key("maxTtl"), "`maxTtl` is below `minTtl`")
                .hint(format!("write at least {}", PolicyDuration(min_ttl)));
        }
        DnsSpec {
            name: dns.name.clone(),
            port: dns.port,
            min_ttl,
            max_ttl,
        }
    }
}
