//! Sends a request to one endpoint: connects, sends the buffered request, and waits for the
//! response head.
//!
//! The client is observed at the same time: the rest of its request is forwarded, and its close
//! ends the attempt. The module does not select the endpoint, classify the response or retry.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;

use crate::{
    clock,
    message::ResponseHead,
    proxy::{
        attempt::{outcome::AttemptError, request_source::RequestSource},
        downstream::client::Client,
        headers::{
            request::{AttemptHead, build_request_head},
            response::build_response_head,
        },
        request::{
            classify::TransportError, context::RequestContext, deadline::Deadline,
            rejection::Rejection,
        },
        upstream::{
            connect::{self, ConnectError, ConnectionRequirements},
            stream::Upstream,
        },
        wire::events::{
            DownstreamEvent, DownstreamInterest, StreamError, UpstreamEvent, UpstreamInterest,
        },
    },
    resilience::instants::earliest,
    state::topology::endpoint::{ConnectionLimitReached, EndpointState},
    telemetry::reason::Reason,
};

/// State of an attempt when its final response head has arrived.
pub(crate) struct ReceivedHead {
    /// Whether the backend accepted the upgrade (status 101), so that a tunnel follows.
    pub(crate) is_upgrade: bool,
    /// Whether the backend still reads the request body.
    pub(crate) accepts_body: bool,
}

/// Sends a request to an endpoint and waits for the final response head.
///
/// `attempt_number` counts from 1.
///
/// # Errors
/// [`AttemptError`] states why there is no response head, and whether a retry can follow.
pub(crate) async fn send_request(
    context: &RequestContext<'_>,
    source: &mut RequestSource<'_>,
    deadline: &mut Deadline,
    attempt_number: u32,
    endpoint: &Arc<EndpointState>,
) -> Result<(Upstream, ReceivedHead), AttemptError> {
    let mut upstream = connect(
        context,
        source.request_view().is_idempotent(),
        deadline,
        endpoint,
    )
    .await?;
    let has_body = !source.is_body_done() || !source.buffered_body().is_empty();
    let time_left = deadline.time_left_for_backend(
        context.destination.policy.timeouts.backend_request,
        clock::now(),
    );
    let request = source.request_view();
    let attempt = AttemptHead {
        endpoint,
        number: request
            .downstream_attempt()
            .saturating_add(attempt_number - 1),
        has_body,
        time_left,
    };
    let head = build_request_head(context, &request, &attempt);
    // Writing only queues, so it fails only if the connection's protocol cannot express the
    // head.
    upstream.write_head(head.map_err(|_| Rejection::from_reason(Reason::InternalError))?)?;
    for chunk in source.buffered_body() {
        upstream.write(chunk)?;
    }
    if source.is_body_done() {
        upstream.finish(source.trailers().cloned())?;
    }
    let head = await_head(context, source, deadline, &mut upstream).await?;
    Ok((upstream, head))
}

async fn connect(
    context: &RequestContext<'_>,
    is_retryable: bool,
    deadline: &Deadline,
    endpoint: &Arc<EndpointState>,
) -> Result<Upstream, AttemptError> {
    let destination = context.destination;
    let enforced_limits = destination.enforced_limits();
    let now = clock::now();
    let requirements = ConnectionRequirements {
        backend: &destination.backend.spec.name,
        is_retryable,
        max_connections: enforced_limits.map_or(u32::MAX, |limits| limits.max_connections),
        max_connections_per_endpoint: enforced_limits
            .map_or(u32::MAX, |limits| limits.max_connections_per_endpoint),
        deadline: earliest([
            destination
                .policy
                .timeouts
                .connect
                .map(|connect| now + connect),
            deadline.expires_at(),
        ]),
        is_http2: context.is_backend_http2(),
        tls: destination.backend.spec.tls.as_ref(),
    };
    connect::connect(context.worker, endpoint, &requirements, now)
        .await
        .map_err(|error| match error {
            ConnectError::Failed => AttemptError::Transport(TransportError::ConnectFailed),
            ConnectError::TlsFailed => AttemptError::Transport(TransportError::TlsFailed),
            ConnectError::TimedOut if deadline.time_left(clock::now()).is_zero() => {
                TransportError::TimedOut {
                    is_request_timeout: true,
                }
                .into()
            }
            ConnectError::TimedOut => AttemptError::Transport(TransportError::ConnectTimeout),
            ConnectError::LimitReached(ConnectionLimitReached::Backend) => Rejection::new(
                Reason::ConnectionLimit,
                destination.backend.spec.name.clone(),
            )
            .into(),
            ConnectError::LimitReached(ConnectionLimitReached::Endpoint) => {
                AttemptError::ConnectionLimitReached
            }
        })
}

enum DispatchEvent {
    /// Memory is short, and a body is retained.
    MemoryPressure,
    Upstream(UpstreamEvent),
    Client(DownstreamEvent),
}

/// Waits for the response head, and meanwhile forwards the rest of the request body.
///
/// The head may arrive before the request is complete. The wait then ends, and the rest of the
/// body remains to be forwarded.
async fn await_head(
    context: &RequestContext<'_>,
    source: &mut RequestSource<'_>,
    deadline: &mut Deadline,
    upstream: &mut Upstream,
) -> Result<ReceivedHead, AttemptError> {
    let memory = &context.worker.state.memory;
    let mut accepts_body = true;
    let mut wait_deadline = head_deadline(context, deadline, source.is_body_done());
    loop {
        let interest = if source.is_body_done() || (accepts_body && upstream.is_flushed()) {
            DownstreamInterest::from_body_state(source.is_body_done())
        } else {
            DownstreamInterest::Nothing
        };
        let has_buffered_body = !source.buffered_body().is_empty();
        let events = async {
            tokio::select! {
                biased;
                event = upstream.next_event(UpstreamInterest::Head, accepts_body) => {
                    DispatchEvent::Upstream(event)
                }
                event = source.next_event(interest) => DispatchEvent::Client(event),
                () = memory.wait_for_pressure(), if has_buffered_body => {
                    DispatchEvent::MemoryPressure
                }
            }
        };
        let Ok(event) = clock::timeout_at(wait_deadline, events).await else {
            return Err(timeout_error(deadline, source.is_body_done(), upstream));
        };
        match event {
            DispatchEvent::MemoryPressure => source.release_body(memory),
            DispatchEvent::Upstream(UpstreamEvent::Head(Ok(()))) => {
                if let Some(head) = inspect_head(context, source, upstream, accepts_body).await? {
                    return Ok(head);
                }
            }
            DispatchEvent::Upstream(UpstreamEvent::Head(Err(error))) => {
                return Err(to_transport_error(error, upstream).into());
            }
            DispatchEvent::Upstream(UpstreamEvent::Flushed(true)) => {
                wait_deadline = head_deadline(context, deadline, source.is_body_done())
            }
            // The backend accepts no more of the request, but may have sent its response
            // before.
            DispatchEvent::Upstream(UpstreamEvent::Flushed(false)) => accepts_body = false,
            DispatchEvent::Upstream(UpstreamEvent::Body(_)) => {
                return Err(TransportError::Protocol.into());
            }
            DispatchEvent::Client(DownstreamEvent::Flushed(flushed)) => {
                flushed.map_err(Rejection::fatal)?
            }
            DispatchEvent::Client(DownstreamEvent::Read(read)) => {
                let chunk = read.map_err(Rejection::fatal)?;
                source.record_chunk(chunk.as_ref())?;
                context.worker.observe_memory();
                let (is_done, trailers) = (source.is_body_done(), source.trailers());
                upstream.forward(chunk.as_ref(), is_done, trailers)?;
                wait_deadline = head_deadline(context, deadline, source.is_body_done());
            }
        }
    }
}

/// Waits for the first chunk of a response body, or for its end.
///
/// A response that ends before its first chunk has delivered nothing to the client and can
/// still be retried. The wait lasts at most the attempt timeout. After it, the result is
/// `None`, and the response is relayed as it is.
pub(crate) async fn read_first_chunk(
    context: &RequestContext<'_>,
    source: &mut RequestSource<'_>,
    deadline: &Deadline,
    upstream: &mut Upstream,
) -> Result<Option<Bytes>, AttemptError> {
    if upstream.is_body_done() {
        return Ok(None);
    }
    let attempt_deadline = context
        .destination
        .policy
        .timeouts
        .backend_request
        .map(|attempt_timeout| clock::now() + attempt_timeout);
    let first = async {
        tokio::select! {
            biased;
            read = upstream.read() => Ok(read),
            reason = source.closed() => Err(AttemptError::Rejected(Rejection::fatal(reason))),
        }
    };
    let wait_deadline = earliest([attempt_deadline, deadline.expires_at()]);
    match clock::timeout_at(wait_deadline, first).await {
        Ok(Ok(Ok(chunk))) => Ok(chunk),
        Ok(Ok(Err(_))) => Err(TransportError::Reset {
            has_sent_request: true,
        }
        .into()),
        Ok(Err(rejection)) => Err(rejection),
        Err(clock::Elapsed) => Ok(None),
    }
}

/// Returns the time at which the wait for the head ends, or `None` if it is unlimited.
///
/// While the client still sends, the stream idle timeout applies and restarts with each
/// chunk. Once the request is complete, the attempt timeout applies.
fn head_deadline(
    context: &RequestContext<'_>,
    deadline: &mut Deadline,
    is_body_done: bool,
) -> Option<Instant> {
    let timeouts = &context.destination.policy.timeouts;
    let now = clock::now();
    let timeout = if is_body_done {
        timeouts.backend_request
    } else {
        timeouts.stream_idle
    };
    if is_body_done {
        deadline.start(now, now);
    }
    earliest([timeout.map(|timeout| now + timeout), deadline.expires_at()])
}

/// Inspects a response head. Returns `None` for an interim head, which is forwarded to the
/// client.
///
/// # Errors
/// A protocol error if the backend switches protocols without a matching request, or if its
/// framing fields are invalid.
async fn inspect_head(
    context: &RequestContext<'_>,
    source: &mut RequestSource<'_>,
    upstream: &Upstream,
    accepts_body: bool,
) -> Result<Option<ReceivedHead>, AttemptError> {
    let Some(head) = upstream.head() else {
        return Err(TransportError::Protocol.into());
    };
    // Only `chunked` can be removed here and added again for the client. Another coding would be
    // lost, and its body would be corrupt.
    if head.framing.is_err() {
        return Err(TransportError::Protocol.into());
    }
    if head.status == 101 {
        let is_upgrade_valid = accepts_body
            && upstream.was_upgraded()
            && source
                .request_view()
                .requested_upgrade()
                .is_some_and(|requested| is_upgrade_accepted(requested, head));
        return if is_upgrade_valid {
            Ok(Some(ReceivedHead {
                is_upgrade: true,
                accepts_body,
            }))
        } else {
            Err(TransportError::Protocol.into())
        };
    }
    if !head.status.is_informational() {
        return Ok(Some(ReceivedHead {
            is_upgrade: false,
            accepts_body,
        }));
    }
    if let RequestSource::Client(client, _) = source {
        // Boxing keeps the future of every request without interim responses small.
        Box::pin(relay_interim_response(context, client, head)).await?;
    }
    Ok(None)
}

fn to_transport_error(error: StreamError, upstream: &Upstream) -> TransportError {
    match error {
        StreamError::Refused => TransportError::Refused,
        StreamError::Protocol => TransportError::Protocol,
        StreamError::Reset => TransportError::Reset {
            has_sent_request: upstream.has_sent_request(),
        },
    }
}

fn timeout_error(deadline: &Deadline, is_body_done: bool, upstream: &Upstream) -> AttemptError {
    upstream.record_timeout();
    let is_request_timeout = deadline.time_left(clock::now()).is_zero();
    if is_request_timeout || is_body_done || !upstream.is_flushed() {
        return TransportError::TimedOut { is_request_timeout }.into();
    }
    Rejection::fatal(Reason::StreamIdleTimeout).into()
}

/// Returns whether a response with status 101 names one of the requested protocols.
fn is_upgrade_accepted(requested: &str, response_head: &ResponseHead) -> bool {
    let accepted = response_head.headers.get_str(http::header::UPGRADE);
    let accepted = accepted.unwrap_or_default();
    !accepted.is_empty()
        && requested
            .split(',')
            .any(|requested| requested.trim().eq_ignore_ascii_case(accepted.trim()))
}

/// Forwards an interim response to the client (RFC 9110 section 15.2).
///
/// HTTP/1.0 clients receive none, because HTTP/1.0 does not define interim responses.
async fn relay_interim_response(
    context: &RequestContext<'_>,
    client: &mut Client,
    head: &ResponseHead,
) -> Result<(), Rejection> {
    if !matches!(
        client.head().version,
        http::Version::HTTP_11 | http::Version::HTTP_2
    ) {
        return Ok(());
    }
    let head = build_response_head(context, client, head, false, None);
    client.write_interim(&head).map_err(Rejection::fatal)?;
    let idle = context.destination.policy.timeouts.stream_idle;
    clock::timeout(idle, client.flush())
        .await
        .map_err(|_| Rejection::fatal(Reason::ClientClosed))?
        .map_err(Rejection::fatal)
}
