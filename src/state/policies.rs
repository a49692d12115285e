//! Shares the pure state machines of the resilience policies between requests.
//!
//! Each submodule puts a lock around one pure state machine of [`crate::resilience`]. A guard
//! returns each permit exactly once, even if the call is cancelled. The exceptions are:
//!
//! - [`stale`] and [`bucket_store`], which store data
//! - [`tally`], which counts
//! - [`remote_limits`], which holds a connection
//!
//! These modules do not decide which state a request uses; [`crate::state::registry`] does.

pub mod admission_control;
pub mod breaker;
pub mod bucket_store;
pub mod concurrency_limit;
pub mod hedge;
pub mod rate_limit;
pub mod remote_limits;
pub mod retry_budget;
pub mod stale;
pub mod tally;
