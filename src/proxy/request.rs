//! What a request is and what is known about it, apart from the connection that it arrived on.

pub(crate) mod authority;
pub(crate) mod classify;
pub(crate) mod client_ip;
pub(crate) mod context;
pub(crate) mod deadline;
pub(crate) mod decision_trace;
pub(crate) mod evidence;
pub(crate) mod grpc;
pub(crate) mod rate_limit_outcome;
pub(crate) mod record;
pub(crate) mod rejection;
pub(crate) mod routing;
pub(crate) mod view;
