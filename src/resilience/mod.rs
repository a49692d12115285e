//! The decisions of Outrigger, as pure machines.
//!
//! Everything here is std only and deterministic: the time is an argument (`now: Instant`), a random number is an
//! argument (`random: f64` in `0..1`), a decision is a value that is returned. Nothing here reads a clock, sleeps, locks,
//! logs, counts a metric, or knows HTTP. The same code therefore runs in the proxy, in tests on virtual time and in a
//! simulator; `.ci/run` compiles this tree with bare `rustc`, without any crate on its path, to keep it so.
//!
//! Every policy has one shape, so that one teaches the rest: a configuration that cannot be wrong (`try_new`), a machine
//! that is asked (`try_acquire`) and told (`settle`), a `snapshot` for views, and transitions as values.

pub mod adaptive;
pub mod admission;
pub mod backoff;
pub mod balance;
pub mod breaker;
pub mod capacity;
pub mod concurrency;
pub mod gcra;
pub mod health;
pub mod hedge;
pub mod latency_histogram;
pub mod lifecycle;
pub mod outlier;
pub mod peak_ewma;
pub mod rate_ramp;
pub mod ratio;
pub mod recovery;
pub mod retry;
pub mod retry_budget;
pub mod shed;
pub mod warm_up;
pub mod window;

/// A time to begin a test at; tests count on from it, and it never matters which one it is.
#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "an Instant can be had from nowhere else"
)]
pub(crate) fn some_instant() -> std::time::Instant {
    std::time::Instant::now()
}

/// What a protective section does with its own decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Decides and acts.
    #[default]
    Enforce,
    /// Decides, counts and explains exactly as [`Mode::Enforce`], and lets the request pass.
    Shadow,
    /// Does nothing.
    Off,
}
