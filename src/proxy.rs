//! The data plane: the only tree that knows pingora's sessions.
//!
//! pingora does the framing of HTTP/1: heads, chunks, lengths. The exchange is ours: `serve` reads like the life of a request,
//! and every step is one function in a file of its own. `pool` keeps idle connections, and `transport`
//! is what is below a session; why these are ours too is in `docs/decisions/0001-own-exchange.md`.

pub mod accept;
mod admission;
mod attempt;
mod downstream;
mod headers;
mod request;
mod response;
mod serve;
pub mod upstream;
mod wire;
