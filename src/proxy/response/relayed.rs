//! A response while it is relayed: the backend's stream, and the observers of its chunks.
//!
//! The module does not read or write; `relay` and `duplex` do.

use std::time::Instant;

use bytes::Bytes;

use crate::{
    clock,
    message::ResponseHead,
    proxy::{
        attempt::outcome::ResponseSummary,
        downstream::task::RequestTask,
        request::context::RequestContext,
        response::{
            stale::{self, ResponseCapture},
            stream_shutdown::StreamShutdown,
        },
        upstream::stream::Upstream,
    },
    resilience::instants::earliest,
    telemetry::reason::Reason,
};

/// A response whose head is forwarded and whose body is being relayed.
pub(crate) struct RelayedResponse {
    pub(crate) stream: Upstream,
    /// Whether the backend still reads the request body.
    pub(crate) accepts_body: bool,
    pub(crate) observers: ResponseObservers,
    /// Time at which the client stops waiting for the end of its call, if it stated one.
    call_deadline: Option<Instant>,
}

/// Observers of the chunks of a response.
pub(crate) struct ResponseObservers {
    /// Ends the stream early while the instance drains, if its protocol allows it.
    pub(crate) shutdown: Option<StreamShutdown>,
    /// Copies the response for the stale cache, if it may be stored.
    pub(crate) capture: Option<Box<ResponseCapture>>,
}

impl ResponseObservers {
    /// Creates the observers that apply to a response, according to its head and the policy.
    pub(crate) fn new(task: &RequestTask<'_>, head: &ResponseHead, is_upgrade: bool) -> Self {
        let (context, request) = (&task.context, task.request());
        let capture = if is_upgrade {
            None
        } else {
            stale::begin_capture(context, &request, head)
        };
        Self {
            shutdown: StreamShutdown::from_response(context, &request, head, is_upgrade),
            capture,
        }
    }

    /// Shows a chunk to the observers before it is forwarded.
    pub(crate) fn observe_chunk(&mut self, chunk: &Bytes) {
        if let Some(shutdown) = &mut self.shutdown {
            shutdown.observe_chunk(chunk);
        }
        let capture = &mut self.capture;
        if capture
            .as_mut()
            .is_some_and(|capture| !capture.append(chunk))
        {
            *capture = None;
        }
    }

    /// Returns whether the stream must end now, before another chunk is forwarded.
    pub(crate) fn is_shutdown_due(&self, context: &RequestContext<'_>) -> bool {
        let shutdown = self.shutdown.as_ref();
        shutdown.is_some_and(|shutdown| shutdown.is_due(context))
    }

    /// Waits until the stream must end because the instance drains.
    ///
    /// It waits forever if the stream cannot end early. Cancel safe.
    pub(crate) async fn wait_until_shutdown(&mut self, context: &RequestContext<'_>) {
        match &mut self.shutdown {
            Some(shutdown) => shutdown.wait_until_due(context).await,
            None => std::future::pending().await,
        }
    }
}

impl RelayedResponse {
    /// Creates the relay state of a response whose head is forwarded.
    pub(crate) fn new(
        stream: Upstream,
        summary: &ResponseSummary,
        observers: ResponseObservers,
    ) -> Self {
        Self {
            stream,
            accepts_body: summary.accepts_body,
            observers,
            call_deadline: summary.call_deadline,
        }
    }

    /// Returns the time at which silence of both sides ends the relay, or `None` if it may last
    /// forever.
    ///
    /// It is never later than the deadline of the client's call.
    pub(crate) fn idle_deadline(&self, task: &RequestTask<'_>) -> Option<Instant> {
        let idle = task.stream_idle_timeout().map(|idle| clock::now() + idle);
        earliest([idle, self.call_deadline])
    }

    /// Returns the reason for which the idle deadline ended the relay.
    pub(crate) fn timeout_reason(&self) -> Reason {
        let deadline = self.call_deadline;
        if deadline.is_some_and(|deadline| clock::now() >= deadline) {
            Reason::RequestTimeout
        } else {
            Reason::StreamIdleTimeout
        }
    }
}
