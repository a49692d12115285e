//! Active health checks of endpoints and of the app, and the readiness that follows from them.

pub(super) mod active_checks;
pub(super) mod app_health;
pub(super) mod grpc_check;
pub(super) mod readiness_gates;
