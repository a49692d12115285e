//! Outrigger: a per-service resilience sidecar.
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
