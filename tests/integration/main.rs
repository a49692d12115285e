//! Black-box tests of Outrigger: the real sidecar on port 0, with scripted backends.
//!
//! One binary, with one module per area. Only `support` waits or sleeps.
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
mod bodies;
mod breakers;
mod client_compatibility;
mod command_line;
mod concurrency_limits;
mod deadlines;
mod decision_trace;
mod degradation;
mod deploy_manifests;
mod diagnostics;
mod discovery;
mod drain;
mod draining_endpoints;
mod fault_injection_and_mirroring;
mod forwarding;
mod framing;
mod global_rate_limits;
mod grpc;
mod handover;
mod hedging;
mod http2;
mod keep_alive;
mod load_balancing;
mod memory_budget;
mod message_round_trips;
mod message_validation;
mod module_graph;
mod nginx_comparison;
mod outlier_detection;
mod policy_sections;
mod properties;
mod protection;
#[cfg(feature = "rls")]
mod rate_limit_service;
mod rate_limits;
mod recovery;
mod releases;
mod reload;
mod retries;
mod startup_and_warm_up;
mod timeouts;
mod tls;
mod trailers;
mod tunnels;
