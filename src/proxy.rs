//! The data plane: the only tree that knows pingora's sessions.
//!
//! pingora does the framing of HTTP/1: heads, chunks, lengths. The exchange is ours: `serve` reads like the life of a request,
//! and every step is one function in a file of its own. `wire` is the transport below a session, `pool` keeps idle
//! connections; why these are ours too is in `docs/decisions/0001-own-exchange.md`.

mod admission;
mod attempt;
mod authority;
mod classify;
mod client;
mod duplex;
mod framing;
mod headers;
mod listener;
pub mod listeners;
mod peer;
mod picking;
mod pool;
mod rejection;
mod relay;
mod request_body;
mod retrying;
mod routing;
mod serve;
mod socket;
mod wire;
pub mod worker;
