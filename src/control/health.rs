//! Active health checks of endpoints and of the app, and the readiness conditions that follow
//! from them.
//!
//! It decides when a check runs and what its result means for readiness. Thresholds of healthy
//! and unhealthy are in [`crate::resilience::health`]. It does not know the traffic; outlier
//! detection judges that.

pub(super) mod active_checks;
pub(super) mod app_health;
pub(super) mod grpc_check;
mod probe_transport;
pub(super) mod readiness_gates;
