//! Attempts at a backend, until there is a response to relay or the request fails.
//!
//! One attempt selects an endpoint, acquires a permit of its breaker, and sends the request (`dispatch`). Its outcome settles
//! the permit. An attempt whose client closed returns its permit without a verdict. The verdict of a gRPC call may come from
//! its trailers.

mod dispatch;
mod endpoint_selection;
mod hedging;
mod history;
pub(crate) mod mirroring;
pub(crate) mod outcome;
pub(crate) mod reporter;
mod request_source;
mod reselection;
pub(crate) mod retry;
pub(crate) mod retry_loop;
mod single;
