//! The data plane: it accepts requests, sends them to backends and relays the responses.
//!
//! `wire/http1` parses and writes HTTP/1 messages, and the h2 crate HTTP/2 frames. The path of a
//! request between them is part of this tree, because it decides about attempts, retries and
//! streams. `docs/decisions/0001-own-exchange.md` gives the reasons.
//!
//! - `accept` turns listening sockets into connections and requests.
//! - `serve` runs the stages of one request in order.
//! - `admission`, `attempt` and `response` are those stages.
//! - `downstream` and `upstream` are the two sides of a request: its client and its backend.
//! - `request`, `headers` and `wire` are shared by the stages.
//!
//! This is the only tree that knows clients and messages. It does not know how policies are
//! parsed, and the decisions of the policies are pure functions in `resilience`.

pub mod accept;
mod admission;
mod attempt;
mod downstream;
#[cfg(fuzzing)]
pub mod fuzzing;
mod headers;
mod request;
mod response;
mod serve;
pub mod upstream;
mod wire;
