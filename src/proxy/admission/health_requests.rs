//! Recognizes requests that check the app's health.
//!
//! Warm-up and load shedding always admit them, because a rejected check could restart the app.
//! Other limits treat them like any request.

use crate::{
    policy::snapshot::ActiveCheckSpec,
    proxy::request::{context::RequestContext, view::RequestView},
};

/// Returns whether a request is the configured active check of its backend or calls the gRPC
/// health service.
pub(crate) fn is_health_check(context: &RequestContext<'_>, request: &RequestView<'_>) -> bool {
    let path = context.request_target.path();
    let checked_path = context
        .destination
        .backend
        .spec
        .active_check
        .as_ref()
        .and_then(ActiveCheckSpec::path)
        .and_then(|checked_path| checked_path.split('?').next());
    checked_path == Some(path) || (request.is_grpc && path.starts_with("/grpc.health.v1.Health/"))
}
