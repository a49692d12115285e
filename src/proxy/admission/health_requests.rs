//! Requests that check the app's health. No overload policy rejects them: a rejected check would restart the app.

use crate::{
    policy::snapshot::ActiveCheckSpec,
    proxy::request::{context::RequestContext, view::RequestView},
};

/// Whether a request is the configured active check of its backend, or a call of the gRPC health service.
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
