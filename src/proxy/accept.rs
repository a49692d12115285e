//! Turns listening sockets into requests: listeners, their connections, and the loops that read
//! one request after another.
//!
//! It decides which connections are accepted, which protocol a connection speaks, and when it
//! closes. It does not know routes or backends; `serve` receives each request.

mod connection;
mod connection_table;
mod http1;
mod http2;
mod listener;
mod listener_context;
pub mod listeners;
mod memory_gated_stream;
mod memory_relief;
