//! Compiles active health checks and outlier detection.
//!
//! It decides the defaults, and checks that the type of a check fits its settings. It sends no
//! check.

use std::time::Duration;

use crate::{
    policy::{
        compile::compiler::Compiler,
        document::{ActiveCheck, ActiveCheckType, HttpCheck, OutlierDetection},
        report::FieldLocation,
        snapshot::{ActiveCheckSpec, OutlierDetectionSpec, ProbeSpec},
        units::{Percent, StatusRange, duration_or},
    },
    resilience::{
        Mode,
        health::HealthConfig,
        outlier::{
            ConsecutiveThresholds, FailurePercentageRule, InvalidOutlier, OutlierConfig,
            SuccessRateRule,
        },
        ratio::Ratio,
    },
};

/// Maximum length of a service name in a gRPC health check. Up to it, the length of the encoded
/// message fits into one byte.
const MAX_GRPC_SERVICE_NAME_BYTES: usize = 125;

/// Minimum time between two checks of an endpoint.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

impl Compiler<'_> {
    pub(super) fn compile_active_check(
        &mut self,
        at: &FieldLocation<'_>,
        check: &ActiveCheck,
    ) -> Option<ActiveCheckSpec> {
        let interval = duration_or(check.interval, Duration::from_secs(5));
        let timeout = duration_or(check.timeout, Duration::from_secs(1));
        for (key, span, hint) in [
            ("interval", check.interval, "5s is the default"),
            (
                "unhealthyInterval",
                check.unhealthy_interval,
                "`interval` is the default",
            ),
            (
                "edgeInterval",
                check.edge_interval,
                "`interval` is the default",
            ),
        ] {
            if span.is_some_and(|span| span.0 < MIN_INTERVAL) {
                self.report
                    .error(&at.key(key), format!("`{key}` must be at least 10ms"))
                    .hint(hint);
            }
        }
        if timeout.is_zero() {
            self.report
                .error(&at.key("timeout"), "`timeout` must be longer than 0s")
                .hint("1s is the default");
        }
        let mut threshold =
            |key, value, default| self.report.require_at_least_one(at, key, value, default);
        let thresholds = HealthConfig {
            unhealthy_threshold: threshold("unhealthyThreshold", check.unhealthy_threshold, 3),
            healthy_threshold: threshold("healthyThreshold", check.healthy_threshold, 2),
        };
        let probe = self.compile_probe(at, check)?;
        if check.kind != ActiveCheckType::GRPC && check.grpc.is_some() {
            self.report
                .error(
                    &at.key("grpc"),
                    "only a check of type GRPC calls the health service",
                )
                .hint("write `type: GRPC`, or remove `grpc`");
        }
        let or_interval = |duration| duration_or(duration, interval);
        let jitter = check
            .jitter_percent
            .unwrap_or(Percent::from_integer(10))
            .ratio()
            .value();
        let (unhealthy_interval, edge_interval) = (
            or_interval(check.unhealthy_interval),
            or_interval(check.edge_interval),
        );
        Some(ActiveCheckSpec {
            probe,
            interval,
            unhealthy_interval,
            edge_interval,
            jitter,
            timeout,
            thresholds,
        })
    }

    fn compile_probe(&mut self, at: &FieldLocation<'_>, check: &ActiveCheck) -> Option<ProbeSpec> {
        Some(match (check.kind, &check.http) {
            (ActiveCheckType::HTTP, Some(http)) => self.compile_http_probe(&at.key("http"), http),
            (ActiveCheckType::TCP, None) => ProbeSpec::Tcp,
            (ActiveCheckType::GRPC, None) => {
                let service = check.grpc.clone().unwrap_or_default().service;
                if service.len() > MAX_GRPC_SERVICE_NAME_BYTES {
                    self.report
                        .error(
                            &at.key("grpc").key("service"),
                            format!(
                                "the name of a service must have at most \
                                 {MAX_GRPC_SERVICE_NAME_BYTES} bytes"
                            ),
                        )
                        .hint("write it as in the app's own definition, like `shop.Payments`");
                    return None;
                }
                ProbeSpec::Grpc { service }
            }
            (ActiveCheckType::HTTP, None) => {
                self.report
                    .error(at, "a check of type HTTP needs `http`")
                    .hint("add `http: {path: /healthz}`");
                return None;
            }
            (ActiveCheckType::TCP, Some(_)) => {
                self.report
                    .error(&at.key("http"), "a check of type TCP only connects")
                    .hint("write `type: HTTP`, or remove `http`");
                return None;
            }
            (ActiveCheckType::GRPC, Some(_)) => {
                self.report
                    .error(
                        &at.key("http"),
                        "a check of type GRPC calls the health service",
                    )
                    .hint("write `type: HTTP`, or remove `http`");
                return None;
            }
        })
    }

    fn compile_http_probe(&mut self, at: &FieldLocation<'_>, http: &HttpCheck) -> ProbeSpec {
        let is_graphic = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if !http.path.starts_with('/') || !is_graphic(&http.path) {
            self.report
                .error(&at.key("path"), format!("`{}` is not a path", http.path))
                .hint("a path begins with `/` and has no spaces");
        }
        if http
            .host
            .as_ref()
            .is_some_and(|host| host.is_empty() || !is_graphic(host))
        {
            self.report
                .error(&at.key("host"), "this is not a host")
                .hint("write a name, and a port where it is needed");
        }
        let default_statuses = [StatusRange::from_bounds(200, 399)];
        ProbeSpec::Http {
            path: http.path.clone(),
            host: http.host.clone(),
            expected: http
                .expected_statuses
                .as_deref()
                .unwrap_or(&default_statuses)
                .iter()
                .collect(),
            body: http.expected_body.clone(),
        }
    }

    pub(super) fn compile_outlier_detection(
        &mut self,
        at: &FieldLocation<'_>,
        section: &OutlierDetection,
    ) -> Option<OutlierDetectionSpec> {
        let mode = section.mode.mode();
        let config = build_outlier_config(section).map_err(|invalid| {
            let key = match invalid {
                InvalidOutlier::ZeroDuration => "interval",
                InvalidOutlier::MaxBelowBase => "maxEjectionTime",
                InvalidOutlier::LatencyFactorTooLow => "slowFactor",
            };
            let hint = "`{interval: 10s, baseEjectionTime: 30s, maxEjectionTime: 5m, \
                        slowFactor: 3}` are the defaults";
            self.report
                .error(&at.key(key), invalid.to_string())
                .hint(hint);
        });
        if section
            .success_rate_stdev_factor
            .is_some_and(|factor| !(factor.is_finite() && factor >= 0.0))
        {
            self.report
                .error(
                    &at.key("successRateStdevFactor"),
                    "`successRateStdevFactor` must be a number of at least 0",
                )
                .hint("1.9 is the default, 0 is off");
        }
        config
            .ok()
            .filter(|_| mode != Mode::Off)
            .map(|config| OutlierDetectionSpec { mode, config })
    }
}

fn build_outlier_config(section: &OutlierDetection) -> Result<OutlierConfig, InvalidOutlier> {
    let base = duration_or(section.base_ejection_time, Duration::from_secs(30));
    let max = duration_or(section.max_ejection_time, Duration::from_mins(5).max(base));
    let config = OutlierConfig::try_new(
        duration_or(section.interval, Duration::from_secs(10)),
        base,
        max,
        section
            .max_ejection_percent
            .unwrap_or(Percent::from_integer(50))
            .ratio(),
    )?;
    let runs = ConsecutiveThresholds {
        failures: section.consecutive_5xx_errors.unwrap_or(5),
        gateway_errors: section.consecutive_gateway_errors.unwrap_or(0),
        local_origin_failures: section.consecutive_local_origin_failures.unwrap_or(5),
    };
    let deviations = section.success_rate_stdev_factor.unwrap_or(1.9);
    let success_rate = SuccessRateRule {
        stdev_factor: deviations,
        minimum_hosts: section.success_rate_minimum_hosts.unwrap_or(5),
        request_volume: section.success_rate_request_volume.unwrap_or(100),
    };
    let threshold = section
        .failure_percentage_threshold
        .map_or(Ratio::ZERO, Percent::ratio);
    let failure_percentage = FailurePercentageRule {
        threshold,
        minimum_hosts: section.failure_percentage_minimum_hosts.unwrap_or(5),
        request_volume: section.failure_percentage_request_volume.unwrap_or(50),
    };
    let config = config.with_consecutive_thresholds(runs).with_rate_rules(
        (deviations > 0.0).then_some(success_rate),
        (threshold > Ratio::ZERO).then_some(failure_percentage),
    );
    match section.slow_factor.unwrap_or(3.0) {
        0.0 => Ok(config),
        factor => config.with_slow_factor(factor),
    }
}
