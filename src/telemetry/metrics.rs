//! Creates metric handles and renders all metrics for Prometheus.
//!
//! A mechanism reports an event, or calls a method of this folder that names an occurrence. The
//! module does not know when a metric changes.

use std::time::{SystemTime, UNIX_EPOCH};

use metrics::{Counter, Gauge, Histogram, Key, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

use crate::{
    resilience::breaker::StateKind,
    telemetry::{
        label::Label,
        metric_names::{self as name, MetricKind},
        tls_subject::TlsSubject,
    },
};

/// Upper bounds of the duration histograms, in seconds. They are those of OpenTelemetry's HTTP
/// conventions, with two lower ones for a local app.
const DURATION_BUCKETS_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];

const METADATA: Metadata<'static> = Metadata::new("outrigger", metrics::Level::INFO, None);

/// Registry of all metrics, which creates handles for them.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    pub(super) fn new() -> Self {
        let builder = [name::REQUEST_SECONDS, name::ATTEMPT_SECONDS]
            .into_iter()
            .fold(PrometheusBuilder::new(), |builder, name| {
                builder
                    .set_buckets_for_metric(
                        Matcher::Full(name.to_owned()),
                        DURATION_BUCKETS_SECONDS,
                    )
                    .expect("the list of bounds is not empty")
            });
        let recorder = builder.build_recorder();
        for (name, kind, help) in name::ALL {
            let unit = name.ends_with("_seconds").then_some(Unit::Seconds);
            match kind {
                MetricKind::Counter => {
                    recorder.describe_counter((*name).into(), unit, (*help).into())
                }
                MetricKind::Gauge => recorder.describe_gauge((*name).into(), unit, (*help).into()),
                MetricKind::Histogram => {
                    recorder.describe_histogram((*name).into(), unit, (*help).into())
                }
            }
        }
        let metrics = Self {
            handle: recorder.handle(),
            recorder,
        };
        metrics
            .gauge(name::BUILD_INFO, &[("version", env!("CARGO_PKG_VERSION"))])
            .set(1.0);
        metrics
    }

    /// Returns a handle of the counter with these labels, registered at the first call.
    pub fn counter(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Counter {
        self.recorder
            .register_counter(&metric_key(name, labels), &METADATA)
    }

    /// Returns a handle of the gauge with these labels, registered at the first call.
    pub fn gauge(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
        self.recorder
            .register_gauge(&metric_key(name, labels), &METADATA)
    }

    /// Returns a handle of the histogram with these labels, registered at the first call.
    pub fn histogram(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Histogram {
        self.recorder
            .register_histogram(&metric_key(name, labels), &METADATA)
    }

    /// Returns all metrics in the text format of Prometheus.
    #[must_use]
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Drains the sample buffers of the histograms.
    ///
    /// It must be called every few seconds. Otherwise the buffers grow until the next scrape.
    pub fn run_maintenance(&self) {
        self.handle.run_upkeep();
    }

    /// Sets the gauge of a backend to 1 if its last discovery succeeded, else to 0.
    pub fn set_discovery_current(&self, backend: &str, is_current: bool) {
        self.gauge(name::DISCOVERY_CURRENT, &[("backend", backend)])
            .set(to_gauge(is_current));
    }

    /// Sets the gauge of a backend without discovery to NaN, which no alert threshold matches.
    pub fn clear_discovery_current(&self, backend: &str) {
        self.gauge(name::DISCOVERY_CURRENT, &[("backend", backend)])
            .set(f64::NAN);
    }

    /// Sets the earliest expiry of a subject's certificates, and whether the files are in use.
    ///
    /// If `not_after` is `None`, the expiry gauge keeps its value.
    pub fn set_certificate(
        &self,
        subject: &TlsSubject,
        not_after: Option<SystemTime>,
        is_current: bool,
    ) {
        let labels = subject.labels();
        if let Some(end) = not_after {
            let since_epoch = end.duration_since(UNIX_EPOCH).unwrap_or_default();
            self.gauge(name::CERTIFICATE_NOT_AFTER, &labels)
                .set(since_epoch.as_secs_f64());
        }
        self.gauge(name::CERTIFICATE_CURRENT, &labels)
            .set(to_gauge(is_current));
    }

    /// Sets the gauges of a subject to NaN, because it no longer has certificates.
    pub fn clear_certificate(&self, subject: &TlsSubject) {
        for gauge in [name::CERTIFICATE_NOT_AFTER, name::CERTIFICATE_CURRENT] {
            self.gauge(gauge, &subject.labels()).set(f64::NAN);
        }
    }

    /// Counts a connection that failed during its TLS handshake.
    pub fn record_tls_failure(&self, subject: &TlsSubject) {
        self.counter(name::TLS_FAILURES, &subject.labels())
            .increment(1);
    }

    /// Counts a connection that was closed because its listener had reached its connection limit.
    pub fn record_refused_connection(&self, listener: &str) {
        self.counter(name::CONNECTIONS_REFUSED, &[("listener", listener)])
            .increment(1);
    }

    /// Counts an HTTP/2 connection that was closed because its client cancelled most of its
    /// requests.
    pub fn record_abused_connection(&self, listener: &str) {
        self.counter(name::CONNECTIONS_ABUSED, &[("listener", listener)])
            .increment(1);
    }

    /// Sets the gauge of the current breaker state to 1, and those of the other states to 0.
    pub fn set_breaker_state(&self, breaker: &str, state: StateKind) {
        self.set_breaker_gauges(breaker, Some(state));
    }

    /// Sets the gauges of all states to 0, because the breaker was removed.
    pub fn clear_breaker_state(&self, breaker: &str) {
        self.set_breaker_gauges(breaker, None);
    }

    fn set_breaker_gauges(&self, breaker: &str, state: Option<StateKind>) {
        for kind in [
            StateKind::Closed,
            StateKind::Open,
            StateKind::HalfOpen,
            StateKind::ForcedOpen,
            StateKind::Disabled,
        ] {
            let labels = [("breaker", breaker), ("state", kind.label())];
            self.gauge(name::BREAKER_STATE, &labels)
                .set(to_gauge(Some(kind) == state));
        }
    }
}

/// Converts a boolean to the value of a gauge.
pub(super) fn to_gauge(is_set: bool) -> f64 {
    f64::from(u8::from(is_set))
}

fn metric_key(name: &'static str, labels: &[(&'static str, &str)]) -> Key {
    let labels: Vec<metrics::Label> = labels
        .iter()
        .map(|(name, value)| metrics::Label::new(*name, (*value).to_owned()))
        .collect();
    Key::from_parts(name, labels)
}
