//! From a listening socket to requests: listeners, connections and the loops that read one request after another.

mod connection;
mod http1;
mod http2;
mod listener;
mod listener_context;
pub mod listeners;
