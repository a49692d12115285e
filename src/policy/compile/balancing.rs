//! Compiles load balancing: the algorithm, slow start and zone preference.
//!
//! It rejects combinations without effect, such as slow start with consistent hashing. It does
//! not know the zone of this instance.

use std::time::Duration;

use http::HeaderName;

use crate::{
    policy::{
        compile::compiler::Compiler,
        document::{
            ConsistentHash, ConsistentHashType, LoadBalancer, LoadBalancerType, SlowStart, ZoneMode,
        },
        report::FieldLocation,
        snapshot::{HashKey, LoadBalancerSpec},
        units::{Percent, PolicyDuration, duration_or},
    },
    resilience::warm_up::WarmUpConfig,
};

/// Compiled settings of a load balancer section.
pub(super) struct CompiledLoadBalancing {
    pub(super) load_balancer: LoadBalancerSpec,
    pub(super) warm_up: Option<WarmUpConfig>,
    pub(super) min_endpoints_in_zone: Option<u32>,
}

impl<'a> Compiler<'a> {
    pub(super) fn compile_load_balancing(
        &mut self,
        at: &FieldLocation<'_>,
        section: Option<&LoadBalancer>,
    ) -> CompiledLoadBalancing {
        let Some(section) = section else {
            return CompiledLoadBalancing {
                load_balancer: LoadBalancerSpec::LeastRequest,
                warm_up: None,
                min_endpoints_in_zone: Some(1),
            };
        };
        let kind = section.kind.unwrap_or(LoadBalancerType::LeastRequest);
        let balancer = match (kind, &section.consistent_hash) {
            (LoadBalancerType::ConsistentHash, Some(hash)) => {
                self.compile_consistent_hash(&at.key("consistentHash"), hash)
            }
            (LoadBalancerType::ConsistentHash, None) => {
                self.report
                    .error(
                        at,
                        "ConsistentHash needs `consistentHash`, which says what to hash",
                    )
                    .hint("add `consistentHash: {type: SourceIP}`");
                LoadBalancerSpec::Random
            }
            (_, Some(_)) => {
                self.report
                    .error(
                        &at.key("consistentHash"),
                        "only the type ConsistentHash hashes",
                    )
                    .hint("write `type: ConsistentHash`, or remove it");
                LoadBalancerSpec::Random
            }
            (LoadBalancerType::LeastRequest, None) => LoadBalancerSpec::LeastRequest,
            (LoadBalancerType::PeakEwma, None) => LoadBalancerSpec::PeakEwma,
            (LoadBalancerType::RoundRobin, None) => LoadBalancerSpec::RoundRobin,
            (LoadBalancerType::Random, None) => LoadBalancerSpec::Random,
        };
        if kind == LoadBalancerType::ConsistentHash && section.slow_start.is_some() {
            self.report
                .error(
                    &at.key("slowStart"),
                    "with ConsistentHash a key's endpoint is fixed, new or not",
                )
                .hint("remove `slowStart`, or use another type");
        }
        let zones = section.zone_aware.clone().unwrap_or_default();
        CompiledLoadBalancing {
            load_balancer: balancer,
            warm_up: section
                .slow_start
                .as_ref()
                .and_then(|slow_start| self.compile_slow_start(&at.key("slowStart"), slow_start)),
            min_endpoints_in_zone: (zones.mode != Some(ZoneMode::Off))
                .then(|| zones.min_endpoints_in_zone_threshold.unwrap_or(1).max(1)),
        }
    }

    fn compile_consistent_hash(
        &mut self,
        at: &FieldLocation<'_>,
        hash: &ConsistentHash,
    ) -> LoadBalancerSpec {
        let key = match (hash.kind, &hash.header, &hash.cookie) {
            (ConsistentHashType::Header, Some(header), None) => {
                HeaderName::from_bytes(header.name.as_bytes())
                    .ok()
                    .map(HashKey::Header)
            }
            (ConsistentHashType::Cookie, None, Some(cookie)) => {
                is_cookie_name(&cookie.name).then(|| HashKey::Cookie(cookie.name.clone()))
            }
            (ConsistentHashType::SourceIP, None, None) => Some(HashKey::ClientIp),
            _ => {
                let hint = "Header goes with `header: {name: ..}`, Cookie with `cookie: {name: \
                            ..}`, SourceIP with neither";
                let message = if hash.header.is_some() || hash.cookie.is_some() {
                    "`consistentHash` has a field of another type"
                } else {
                    "`consistentHash` needs the field that its type names"
                };
                self.report.error(at, message).hint(hint);
                Some(HashKey::ClientIp)
            }
        };
        let key = key.unwrap_or_else(|| {
            self.report
                .error(at, "this cannot be the name of a header or cookie")
                .hint("use letters, digits and `-`");
            HashKey::ClientIp
        });
        let percent = hash.load_bound_percent.unwrap_or(125);
        if percent <= 100 {
            self.report
                .error(
                    &at.key("loadBoundPercent"),
                    "`loadBoundPercent` must be above 100",
                )
                .hint("125 is the default");
        }
        LoadBalancerSpec::ConsistentHash {
            key,
            bound: f64::from(percent) / 100.0,
        }
    }

    fn compile_slow_start(
        &mut self,
        at: &FieldLocation<'_>,
        section: &SlowStart,
    ) -> Option<WarmUpConfig> {
        self.compile_warm_up_config(
            at,
            section.window,
            section.aggression,
            (section.min_weight_percent, "minWeightPercent"),
        )
    }

    /// Compiles the warm-up of an endpoint or of this instance. `key` names the minimum share
    /// in messages.
    pub(super) fn compile_warm_up_config(
        &mut self,
        at: &FieldLocation<'_>,
        window: Option<PolicyDuration>,
        aggression: Option<f64>,
        (min_share, key): (Option<Percent>, &str),
    ) -> Option<WarmUpConfig> {
        let window = duration_or(window, Duration::from_secs(30));
        let config = WarmUpConfig::try_new(
            window,
            aggression.unwrap_or(1.0),
            min_share.unwrap_or(Percent::from_integer(10)).ratio(),
        );
        config
            .map_err(|invalid| {
                self.report.error(at, invalid.to_string()).hint(format!(
                    "`{{window: 30s, aggression: 1, {key}: 10}}` are the defaults"
                ))
            })
            .ok()
    }
}

/// Returns whether a text is a valid cookie name: a token of RFC 6265 section 4.1.1.
fn is_cookie_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}
