//! Facts about one request, apart from the connection on which it arrived.
//!
//! They are its target, client and deadline, the route and policy that apply, the outcome of
//! its attempts, and its rejection. The module neither reads from the client nor sends to a
//! backend.

pub(crate) mod authority;
pub(crate) mod classify;
pub(crate) mod client_ip;
pub(crate) mod context;
pub(crate) mod deadline;
pub(crate) mod decision_trace;
pub(crate) mod evidence;
pub(crate) mod grpc;
pub(crate) mod host_port;
pub(crate) mod rate_limit_outcome;
pub(crate) mod reason_table;
pub(crate) mod record;
pub(crate) mod rejection;
pub(crate) mod routing;
pub(crate) mod view;
