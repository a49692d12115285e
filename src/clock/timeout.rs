//! A future with a time limit, whose timer is created when the future first has to wait.
//!
//! Many futures are ready at once, and then need no clock and no timer. A hand-written future also
//! holds its inner future once. An `async fn` would hold its argument and the pinned copy.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use pin_project_lite::pin_project;
use tokio::{
    task::{Unconstrained, unconstrained},
    time::{Sleep, sleep_until},
};

/// Error for a future that did not complete within its time limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("timed out")
    }
}

impl std::error::Error for Elapsed {}

/// When a timer ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum TimeLimit {
    After(Duration),
    At(Instant),
}

pin_project! {
    /// Future that fails with [`Elapsed`] after its time limit.
    #[must_use = "futures do nothing unless polled"]
    pub struct Timeout<F> {
        #[pin]
        future: F,
        // Limit of the timer that is not created yet; `None` without a limit, or afterwards.
        limit: Option<TimeLimit>,
        #[pin]
        timer: Option<Unconstrained<Sleep>>,
    }
}

impl<F> Timeout<F> {
    pub(super) fn new(future: F, limit: Option<TimeLimit>) -> Self {
        Self {
            future,
            limit,
            timer: None,
        }
    }
}

impl TimeLimit {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place with timers"
    )]
    fn create_timer(self) -> Sleep {
        match self {
            Self::After(duration) => tokio::time::sleep(duration),
            Self::At(deadline) => sleep_until(deadline.into()),
        }
    }
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Poll::Ready(output) = this.future.poll(context) {
            return Poll::Ready(Ok(output));
        }
        if let Some(limit) = this.limit.take() {
            // A future that uses up the budget of its task must not delay its timer.
            this.timer.set(Some(unconstrained(limit.create_timer())));
        }
        let timer = this.timer.as_pin_mut();
        timer.map_or(Poll::Pending, |timer| {
            timer.poll(context).map(|()| Err(Elapsed))
        })
    }
}

impl<F> fmt::Debug for Timeout<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timeout")
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}
