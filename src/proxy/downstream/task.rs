//! One request while it is served: the single owner of everything that belongs to it.

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

/// A routed request, from its admission to the end of its response.
pub(crate) struct RequestTask<'r> {
    /// Where the request goes. A fallback changes it.
    pub(crate) context: RequestContext<'r>,
    pub(crate) client: &'r mut Client,
    pub(crate) body: RequestBody,
    pub(crate) record: &'r mut RequestRecord,
    pub(crate) permits: RequestPermits,
    /// Whether the listener closes its connections after the response in progress.
    pub(crate) is_listener_closing: bool,
}

/// What a request occupies until its response has been relayed. A drop returns all of it.
#[derive(Default)]
pub(crate) struct RequestPermits {
    /// A permit of the concurrency limit.
    pub(crate) concurrency: Option<ConcurrencyPermit>,
    /// A permit of the requests that suffer an injected fault at the same time.
    pub(crate) fault: Option<OwnedSemaphorePermit>,
    /// A permit of the requests that retry at the same time.
    pub(crate) retry: Option<RetryGuard>,
}

impl RequestTask<'_> {
    /// Returns the head of the request and its sender.
    pub(crate) fn request(&self) -> RequestView<'_> {
        self.client.request_view()
    }

    /// Whether the client's connection closes after this response.
    pub(crate) fn closes_connection(&self) -> bool {
        self.is_listener_closing
            || (self.context.is_inbound() && self.context.worker.state.drain.is_draining())
    }

    /// The longest silence that the policy allows in a body or a tunnel.
    pub(crate) fn stream_idle_timeout(&self) -> Option<Duration> {
        self.context.destination.policy.timeouts.stream_idle
    }

    /// Waits for a future as long as the client stays connected.
    ///
    /// A client that still sends its body is not watched: the read would consume the body.
    ///
    /// # Errors
    /// A fatal rejection if the client closed its connection.
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

    /// Waits until the client has received all queued output.
    ///
    /// # Errors
    /// If the client closed its connection, or was silent for longer than the policy allows.
    pub(crate) async fn flush_client(&mut self) -> Result<(), Reason> {
        clock::timeout(self.stream_idle_timeout(), self.client.flush())
            .await
            .map_err(|_| Reason::StreamIdleTimeout)?
    }
}
