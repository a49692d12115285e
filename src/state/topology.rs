//! Backends and their endpoints, and the TLS configurations for connections.
//!
//! These modules decide which endpoint of a backend a request is sent to. They combine active
//! checks, outlier detection, load, and the lifecycle that endpoints announce. They do not
//! discover endpoints, run checks or open connections.

pub mod backend;
pub mod endpoint;
pub mod outlier;
pub mod tls;
