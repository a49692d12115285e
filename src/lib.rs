//! Outrigger: a per-service resilience sidecar. This page is the tour.
//!
//! It sits beside one service and takes its inbound and outbound HTTP. What it does with a request is decided by policies, which
//! are read from files and replaced while it runs.
//!
//! Begin with [`resilience`]: the decisions, as pure machines. [`resilience::breaker`] is the best known of them, and shows the
//! shape that all have. They know no clock, no HTTP and no lock.
//!
//! [`policy`] turns files into a compiled, immutable [`policy::snapshot::Snapshot`], or into all their faults at once.
//! [`state`] joins a snapshot with what outlives it: breakers, buckets, endpoints, kept by their names over every reload.
//!
//! [`proxy`] is the data plane. One function, `proxy/serve.rs`, reads like the life of a request; it pins the state of the moment,
//! and each step is a file of its own. [`transport`] is what is below HTTP: sockets and TLS. [`control`] is everything that happens without a request: reload, health checks,
//! recovery, drain. [`admin`] shows what is, and takes a few wishes.
//!
//! [`telemetry`] is told what happened, and makes log lines, metrics and a stream of events of it. [`clock`] is the only reader of
//! clocks. [`app`] puts all of it together, and [`cli`] is the command line.
//!
//! ```
//! use std::{collections::HashMap, path::Path};
//!
//! // What `outrigger check` does.
//! let loaded = outrigger::policy::load(Path::new("policies"), &HashMap::new()).expect("the shipped policies are fine");
//! assert_eq!(loaded.snapshot.routes.len(), 2);
//! ```

pub mod admin;
pub mod app;
pub mod cli;
pub mod clock;
pub mod control;
pub mod policy;
pub mod proxy;
pub mod resilience;
pub mod settings;
pub mod state;
pub mod telemetry;
pub mod transport;
