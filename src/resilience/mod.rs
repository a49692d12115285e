//! The decisions of Outrigger, as pure state machines.
//!
//! Each module decides one resilience policy, such as the circuit breaker or the retry budget.
//! The code uses only the standard library and is deterministic. The time is an argument
//! (`now: Instant`), a random number is an argument (`random: f64` in `0..1`), and a decision
//! is a return value. No module here reads a clock, sleeps, takes a lock, writes a log, emits a
//! metric or knows HTTP. The same code therefore runs in the proxy, in tests on virtual time
//! and in a simulator. To enforce this, `.ci/run` compiles this tree with plain `rustc` and no
//! external crate.
//!
//! Most policies have the same parts:
//!
//! - a configuration type; where a value could be invalid, `try_new` rejects it;
//! - a state machine that decides, for example in `try_acquire`;
//! - a method that records a result, for example `settle`;
//! - read access for diagnostics, for example `snapshot`;
//! - state transitions as return values.

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
pub mod instants;
pub mod latency_histogram;
pub mod lifecycle;
pub mod memory_pressure;
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

/// Returns a start time for a test, which adds offsets to it. The absolute value never matters.
#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "an Instant can be had from nowhere else"
)]
pub(crate) fn some_instant() -> std::time::Instant {
    std::time::Instant::now()
}

/// How a policy section acts on its own decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The policy decides and acts: a rejection reaches the client.
    #[default]
    Enforce,
    /// The policy decides, counts and logs as in [`Mode::Enforce`], but admits the request.
    Shadow,
    /// The policy is disabled: it decides and counts nothing.
    Off,
}
impl Mode {
    /// Returns the name of the mode in the policies and the views.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforce => "Enforce",
            Self::Shadow => "Shadow",
            Self::Off => "Off",
        }
    }
}
