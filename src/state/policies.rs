//! The shared state of the protective policies: each pure machine behind its lock, with the guards that settle its calls.

pub mod admission_control;
pub mod breaker;
pub mod bucket_store;
pub mod concurrency_limit;
pub mod hedge;
pub mod rate_limit;
pub mod remote_limits;
pub mod retry_budget;
pub mod stale;
