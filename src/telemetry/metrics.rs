//! The metrics registry, and the handles that it gives out.
//!
//! A mechanism reports an event or calls a method with a meaning; the names of the metrics are known in this folder only.

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

/// Bounds of the duration histograms in seconds: those of OpenTelemetry's HTTP conventions, and two below for a local app.
const DURATION_BUCKETS_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];

const METADATA: Metadata<'static> = Metadata::new("outrigger", metrics::Level::INFO, None);

/// The registry, and the making of handles.
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

    /// A handle on a counter.
    pub fn counter(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Counter {
        self.recorder
            .register_counter(&metric_key(name, labels), &METADATA)
    }

    /// A handle on a gauge.
    pub fn gauge(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
        self.recorder
            .register_gauge(&metric_key(name, labels), &METADATA)
    }

    /// A handle on a histogram.
    pub fn histogram(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Histogram {
        self.recorder
            .register_histogram(&metric_key(name, labels), &METADATA)
    }

    /// The text that Prometheus reads.
    #[must_use]
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Empties the buffers of the histograms; to be called every few seconds, or they grow until the next scrape.
    pub fn run_maintenance(&self) {
        self.handle.run_upkeep();
    }

    /// Shows whether the last discovery of a backend's endpoints succeeded.
    pub fn set_discovery_current(&self, backend: &str, is_current: bool) {
        self.gauge(name::DISCOVERY_CURRENT, &[("backend", backend)])
            .set(to_gauge(is_current));
    }

    /// Withdraws the gauge of a backend without discovery. It becomes not a number, so that no alert compares it.
    pub fn clear_discovery_current(&self, backend: &str) {
        self.gauge(name::DISCOVERY_CURRENT, &[("backend", backend)])
            .set(f64::NAN);
    }

    /// Shows when the first certificate of a subject expires, and whether the files are in use.
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

    /// Withdraws the gauges of a subject that has no certificates any more.
    pub fn clear_certificate(&self, subject: &TlsSubject) {
        for gauge in [name::CERTIFICATE_NOT_AFTER, name::CERTIFICATE_CURRENT] {
            self.gauge(gauge, &subject.labels()).set(f64::NAN);
        }
    }

    /// Counts a connection whose TLS handshake failed.
    pub fn record_tls_failure(&self, subject: &TlsSubject) {
        self.counter(name::TLS_FAILURES, &subject.labels())
            .increment(1);
    }

    /// Counts a connection that a listener closed because it had as many as it may have.
    pub fn record_refused_connection(&self, listener: &str) {
        self.counter(name::CONNECTIONS_REFUSED, &[("listener", listener)])
            .increment(1);
    }

    /// Counts an HTTP/2 connection that was closed because its client cancelled most of its requests.
    pub fn record_abused_connection(&self, listener: &str) {
        self.counter(name::CONNECTIONS_ABUSED, &[("listener", listener)])
            .increment(1);
    }

    /// Shows the state of a breaker.
    pub fn set_breaker_state(&self, breaker: &str, state: StateKind) {
        self.set_breaker_gauges(breaker, Some(state));
    }

    /// Shows that a breaker exists no more: it is in no state.
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
