//! Attempts at a backend, until there is a response to relay or the request fails.
//!
//! One attempt selects an endpoint, acquires a permit of its breaker, and sends the request
//! (`dispatch`). Its outcome settles the permit. If the client closes, the attempt returns its
//! permit without a verdict. The verdict of a gRPC call may arrive only with its trailers.
//!
//! The modules do not relay the response to the client.

pub(crate) mod discard;
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
