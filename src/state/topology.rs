//! What is known of backends and their endpoints, and the TLS material to reach them.

pub mod backend;
pub mod endpoint;
pub mod outlier;
pub mod tls;
