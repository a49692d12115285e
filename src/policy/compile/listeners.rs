//! Compiles listeners: their addresses, limits and trusted proxies.
//!
//! It rejects two listeners with the same address and limits that would admit no request. It
//! binds no address.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use crate::policy::{
    compile::compiler::Compiler,
    document::{Listener, ListenerLimits},
    report::FieldLocation,
    snapshot::{ListenerLimitSpec, ListenerSpec},
    units::{PolicyDuration, duration_or},
};

impl<'a> Compiler<'a> {
    pub(super) fn compile_listeners(&mut self) -> Vec<(FieldLocation<'a>, ListenerSpec)> {
        let mut seen = HashMap::new();
        let mut by_address: HashMap<SocketAddr, &str> = HashMap::new();
        let mut listeners = Vec::new();
        for (at, listener) in
            self.collect_items("listeners", |document| document.spec.listeners.as_slice())
        {
            self.report
                .check_name(&at.key("name"), "listener", &listener.name, &mut seen);
            let spec = self.compile_listener(&at, listener);
            let other = if spec.address.port() == 0 {
                None
            } else {
                by_address.insert(spec.address, &listener.name)
            };
            if let Some(other) = other {
                self.report
                    .error(
                        &at.key("address"),
                        format!(
                            "the listener `{other}` is bound to {} already",
                            spec.address
                        ),
                    )
                    .hint("give one of them another port");
            }
            listeners.push((at, spec));
        }
        listeners
    }

    fn compile_listener(&mut self, at: &FieldLocation<'_>, listener: &Listener) -> ListenerSpec {
        let limits = self.compile_listener_limits(
            &at.key("limits"),
            &listener.limits.clone().unwrap_or_default(),
        );
        let protocol = Self::compile_listener_protocol(listener.protocol);
        let address = listener.address.parse().unwrap_or_else(|_| {
            self.report
                .error(
                    &at.key("address"),
                    format!("`{}` is not an address to listen on", listener.address),
                )
                .hint("write an IP address and a port, like `0.0.0.0:16001` or `[::]:16001`");
            // The set is refused anyway. The placeholder avoids further errors for routes with
            // this listener.
            SocketAddr::from(([0, 0, 0, 0], 0))
        });
        ListenerSpec {
            name: Arc::from(listener.name.as_str()),
            direction: listener.direction,
            address,
            protocol,
            tls: listener
                .tls
                .as_ref()
                .and_then(|tls| self.compile_listener_tls(&at.key("tls"), tls, protocol)),
            limits,
            trusted_proxies: self.compile_trusted_proxies(&at.key("clientIPDetection"), listener),
        }
    }

    /// Compiles the address ranges of proxies whose `x-forwarded-for` header is trusted.
    fn compile_trusted_proxies(
        &mut self,
        at: &FieldLocation<'_>,
        listener: &Listener,
    ) -> Vec<ipnet::IpNet> {
        let Some(detection) = &listener.client_ip_detection else {
            return Vec::new();
        };
        let at = at.key("xForwardedFor").key("trustedCIDRs");
        let ranges = &detection.x_forwarded_for.trusted_cidrs;
        if ranges.is_empty() {
            self.report
                .error(&at, "without trusted ranges, no client address is detected")
                .hint("name the ranges of your proxies, like `10.0.0.0/8`");
        }
        ranges
            .iter()
            .enumerate()
            .filter_map(|(index, range)| self.report.parse_cidr(&at.index(index), range))
            .collect()
    }

    fn compile_listener_limits(
        &mut self,
        at: &FieldLocation<'_>,
        limits: &ListenerLimits,
    ) -> ListenerLimitSpec {
        let max_header_bytes = limits.max_header_bytes.map_or(64 << 10, |size| size.0);
        if !(1 << 10..=1 << 20).contains(&max_header_bytes) {
            self.report
                .error(
                    &at.key("maxHeaderBytes"),
                    "`maxHeaderBytes` must be from 1Ki to 1Mi",
                )
                .hint("64Ki is the default");
        }
        let max_headers = limits.max_headers.unwrap_or(256);
        if !(16..=1024).contains(&max_headers) {
            self.report
                .error(
                    &at.key("maxHeaders"),
                    "`maxHeaders` must be from 16 to 1024",
                )
                .hint("256 is the default");
        }
        if limits.max_connections == Some(0) {
            self.report
                .error(
                    &at.key("maxConnections"),
                    "with 0, no connection is accepted",
                )
                .hint("write at least 1");
        }
        if limits.max_concurrent_streams == Some(0) {
            self.report
                .error(
                    &at.key("maxConcurrentStreams"),
                    "with 0, no request is accepted",
                )
                .hint("write at least 1; 100 is the default");
        }
        let mut timeout = |key: &str, span: Option<PolicyDuration>, default: u64| {
            let duration = duration_or(span, Duration::from_secs(default));
            if duration.is_zero() {
                self.report
                    .error(&at.key(key), format!("`{key}` cannot be switched off"))
                    .hint("without it a silent client could hold a connection indefinitely");
            }
            duration
        };
        ListenerLimitSpec {
            header_timeout: timeout("headerTimeout", limits.header_timeout, 10),
            idle_timeout: timeout("idleTimeout", limits.idle_timeout, 75),
            max_connections: limits.max_connections.unwrap_or(10_000),
            max_concurrent_streams: limits.max_concurrent_streams.unwrap_or(100),
            max_header_bytes: usize::try_from(max_header_bytes).unwrap_or(usize::MAX),
            max_headers: usize::from(max_headers),
            max_body_bytes: limits.max_body_bytes.map_or(32 << 20, |size| size.0),
        }
    }
}
