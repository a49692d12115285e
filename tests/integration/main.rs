//! The promises of Outrigger, black box: the real sidecar on port 0, and backends that do exactly what a test says.
//!
//! One binary, one module per promise. `support` is the only place that may wait.
#![expect(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::unwrap_used,
    clippy::float_cmp,
    reason = "tests"
)]

mod support;

mod admin;
mod allocations;
mod architecture;
mod balancing;
mod bodies;
mod breakers;
mod clients;
mod command_line;
mod deadlines;
mod decisions;
mod degradation;
mod departures;
mod deploy;
mod diagnostics;
mod discovery;
mod drain;
mod faults;
mod forwarding;
mod framing;
mod global_limits;
mod grpc;
mod handover;
mod hedging;
mod http2;
mod keep_alive;
mod limits;
mod module_graph;
mod outliers;
mod properties;
mod protection;
#[cfg(feature = "rls")]
mod rate_limit_service;
mod rate_limits;
mod recovery;
mod releases;
mod reload;
mod retries;
mod timeouts;
mod tls;
mod tunnels;
mod warming;
