//! Response types of the admin API.
//!
//! The views render state and decide nothing. Field names are the public JSON keys of the API.
//! Durations are in the unit of the field's suffix, and percentages are in `0.0..=100.0`.

pub(super) mod backend;
pub(super) mod breaker;
pub(super) mod instance;
pub(super) mod limit;
mod rate_limit;
pub(super) mod recovery;
pub(super) mod route;
