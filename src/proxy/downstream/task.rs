//! One routed request while it is served: the single owner of its data.
//!
//! The stages of a request borrow it one after another. It decides nothing about the request
//! except when the client's connection must close.

use std::{future::Future, time::Duration};

use tokio::sync::OwnedSemaphorePermit;

use crate::{
    clock,
    proxy::{
        downstream::{client::Client, request_body::RequestBody},
        request::{
            context::RequestContext, record::RequestRecord, rejection::Rejection, view::RequestView,
        },
    },
    state::policies::{concurrency_limit::ConcurrencyPermit, retry_budget::RetryGuard},
    telemetry::reason::Reason,
};

/// Routed request, from its admission to the end of its response.
pub(crate) struct RequestTask<'r> {
    /// Route, destination and policy of the request. A fallback replaces the destination.
    pub(crate) context: RequestContext<'r>,
    pub(crate) client: &'r mut Client,
    pub(crate) body: RequestBody,
    pub(crate) record: &'r mut RequestRecord,
    pub(crate) permits: RequestPermits,
    /// Whether the listener closes its connections after the response in progress.
    pub(crate) is_listener_closing: bool,
}

/// Permits that a request holds until its response has been relayed. A drop releases them.
#[derive(Default)]
pub(crate) struct RequestPermits {
    /// Permit of the concurrency limit of the destination.
    pub(crate) concurrency: Option<ConcurrencyPermit>,
    /// Permit for one request with an injected fault; their concurrent number is limited.
    pub(crate) fault: Option<OwnedSemaphorePermit>,
    /// Permit for one retrying request; their concurrent number is limited.
    pub(crate) retry: Option<RetryGuard>,
}

impl RequestTask<'_> {
    /// Returns the head of the request and its sender.
    pub(crate) fn request(&self) -> RequestView<'_> {
        self.client.request_view()
    }

    /// Returns whether the client's connection closes after this response: its listener closes,
    /// or the instance drains and the request is inbound.
    pub(crate) fn closes_connection(&self) -> bool {
        self.is_listener_closing
            || (self.context.is_inbound() && self.context.worker.state.drain.is_draining())
    }

    /// Returns the time without a byte after which a body or a tunnel fails; `None` is
    /// unlimited.
    pub(crate) fn stream_idle_timeout(&self) -> Option<Duration> {
        self.context.destination.policy.timeouts.stream_idle
    }

    /// Awaits a future for as long as the client stays connected.
    ///
    /// A client that still sends its body is not watched, because the read would consume the
    /// body.
    ///
    /// # Errors
    /// A fatal rejection if the client closes its connection.
    pub(crate) async fn while_connected<T>(
        &mut self,
        future: impl Future<Output = T>,
    ) -> Result<T, Rejection> {
        let can_watch_client = self.client.is_body_done();
        tokio::select! {
            biased;
            output = future => Ok(output),
            reason = self.client.closed(), if can_watch_client => Err(Rejection::fatal(reason)),
        }
    }

    /// Waits until all queued output was passed on to the client.
    ///
    /// # Errors
    /// If the client closes its connection, or accepts no output within the stream idle
    /// timeout.
    pub(crate) async fn flush_client(&mut self) -> Result<(), Reason> {
        clock::timeout(self.stream_idle_timeout(), self.client.flush())
            .await
            .map_err(|_| Reason::StreamIdleTimeout)?
    }
}
