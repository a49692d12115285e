//! Outrigger: a resilience sidecar proxy for one service. This page gives an overview of the
//! crate.
//!
//! The sidecar handles the inbound and outbound HTTP traffic of one service. Policies decide
//! how it treats each request. The sidecar reads them from files and can replace them at run
//! time.
//!
//! Start with [`resilience`]: the decisions, as pure state machines that know no clock, no HTTP
//! and no lock. [`resilience::breaker`] is the best-known one and shows the structure that all
//! of them share.
//!
//! - [`policy`] compiles files into an immutable [`policy::snapshot::PolicySnapshot`], or
//!   reports all their errors at once.
//! - [`state`] combines a snapshot with everything that outlives it: breakers, rate limit
//!   buckets and endpoints. They are identified by name and survive reloads.
//! - [`proxy`] is the data plane. `proxy/serve.rs` describes the life of a request from top to
//!   bottom. It pins the active policy at the start, and each step has a file of its own.
//! - [`message`] holds the heads of HTTP messages.
//! - [`transport`] is the layer below HTTP: sockets and TLS.
//! - [`control`] contains everything that runs without a request: reload, discovery, health
//!   checks, recovery and drain.
//! - [`admin`] serves probes, metrics and views, and accepts a few commands.
//! - [`telemetry`] turns events into log lines, metrics and an event stream.
//! - [`clock`] is the only module that reads clocks.
//! - [`settings`] holds the flags and environment variables of the process.
//! - [`app`] connects all parts, and [`cli`] is the command line.
//!
//! ```
//! use std::{collections::HashMap, path::Path};
//!
//! // This is what `outrigger check` does.
//! let loaded = outrigger::policy::load(Path::new("policies"), &HashMap::new())
//!     .expect("the shipped policies are fine");
//! assert_eq!(loaded.snapshot.routes.len(), 2);
//! ```

pub mod admin;
pub mod app;
pub mod cli;
pub mod clock;
pub mod control;
pub mod message;
pub mod policy;
pub mod proxy;
pub mod resilience;
pub mod settings;
pub mod state;
pub mod telemetry;
pub mod transport;
