//! The data plane: the only tree that knows pingora's sessions.
//!
//! pingora does the framing of HTTP/1: heads, chunks, lengths. The exchange is ours: `serve` reads like the life of a request,
//! and every step is one function in a file of its own. `pool` keeps idle connections, and `transport`
//! is what is below a session; why these are ours too is in `docs/decisions/0001-own-exchange.md`.

mod admission;
mod asked;
mod asker;
mod asking;
mod attempt;
mod authority;
mod boundary;
mod classify;
mod client;
mod connection;
mod deadline;
mod degradation;
mod duplex;
mod faults;
mod framing;
mod global_limits;
mod grpc;
mod headers;
mod hedging;
mod http1;
mod http2;
mod listener;
pub mod listeners;
mod mirroring;
mod notes;
mod parting;
mod peer;
mod picking;
mod pool;
mod rate_limits;
mod record;
mod rejection;
mod relay;
mod repicking;
mod request_body;
mod retrying;
mod routing;
mod serve;
mod settlement;
mod signs;
mod source;
mod stale;
mod upstream;
pub mod worker;
