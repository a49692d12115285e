//! Relays both directions at once: a response that starts before its request has ended, or a
//! tunnel.
//!
//! Four events can happen next, and none waits for another:
//!
//! - the client receives queued output,
//! - the backend receives queued output,
//! - the client sends,
//! - the backend sends.
//!
//! A side is read only while the queue of the other side is empty. Each direction therefore
//! retains at most one chunk, and no side can block the other. The module does not know message
//! boundaries; the observers of the response do.

use crate::{
    clock,
    proxy::{
        downstream::task::RequestTask,
        response::{relayed::RelayedResponse, stream_shutdown::WEBSOCKET_GOING_AWAY},
        wire::events::{DownstreamEvent, DownstreamInterest, UpstreamEvent, UpstreamInterest},
    },
    telemetry::reason::Reason,
};

enum DuplexEvent {
    Client(DownstreamEvent),
    Upstream(UpstreamEvent),
    /// The instance drains, and the stream must end now.
    ShutdownDue,
}

/// Relays the rest of the request and the response, until the response is complete.
///
/// # Errors
/// The reason for which the response must be aborted.
pub(crate) async fn relay_both_directions(
    task: &mut RequestTask<'_>,
    relayed: &mut RelayedResponse,
) -> Result<(), Reason> {
    let mut is_response_read = false;
    let mut is_finished = false;
    loop {
        is_response_read |= relayed.stream.is_body_done();
        if is_response_read && !is_finished {
            // The end is queued before the next flush, so that a response without a body leaves
            // as one HEADERS frame. gRPC clients need that for Trailers-Only.
            let trailers = relayed.stream.trailers().cloned();
            task.client.finish(trailers)?;
            is_finished = true;
        }
        if is_finished && task.client.is_flushed() {
            return Ok(());
        }
        match next_event(task, relayed, true).await? {
            DuplexEvent::Client(DownstreamEvent::Flushed(flushed)) => flushed?,
            DuplexEvent::Client(DownstreamEvent::Read(read)) => {
                let chunk = read?;
                let body = &mut task.body;
                body.record_chunk(task.client, chunk.as_ref())
                    .map_err(|rejection| rejection.reason)?;
                let (is_done, trailers) = (body.is_done(), body.trailers());
                let forwarded = relayed.stream.forward(chunk.as_ref(), is_done, trailers);
                relayed.accepts_body &= forwarded.is_ok();
            }
            // The backend may stop reading the request while its response continues.
            DuplexEvent::Upstream(UpstreamEvent::Flushed(is_accepted)) => {
                relayed.accepts_body &= is_accepted;
            }
            DuplexEvent::Upstream(UpstreamEvent::Body(read)) => match read? {
                Some(chunk) => {
                    relayed.observers.observe_chunk(&chunk);
                    task.client.write(chunk)?;
                }
                None => is_response_read = true,
            },
            DuplexEvent::Upstream(UpstreamEvent::Head(_)) => {
                return Err(Reason::UpstreamProtocolError);
            }
            DuplexEvent::ShutdownDue => return Err(Reason::Draining),
        }
    }
}

/// Relays bytes in both directions until one side closes and its earlier output has been
/// delivered.
///
/// While the instance drains, a WebSocket client receives a close frame from the proxy. It then
/// receives nothing more from the backend.
///
/// # Errors
/// The reason for which the tunnel was cut off.
pub(crate) async fn relay_tunnel(
    task: &mut RequestTask<'_>,
    relayed: &mut RelayedResponse,
) -> Result<(), Reason> {
    relayed.stream.switch_to_tunnel();
    let mut is_open = true;
    let mut is_close_sent = false;
    while is_open || !task.client.is_flushed() || !relayed.stream.is_flushed() {
        match next_event(task, relayed, is_open).await? {
            DuplexEvent::Client(DownstreamEvent::Flushed(flushed)) => flushed?,
            DuplexEvent::Client(DownstreamEvent::Read(read)) => match read? {
                Some(chunk) => {
                    task.body.record_tunnel_bytes(&chunk);
                    relayed.stream.write_tunnel_bytes(&chunk)?;
                }
                None => is_open = false,
            },
            DuplexEvent::Upstream(UpstreamEvent::Flushed(true)) => {}
            DuplexEvent::Upstream(UpstreamEvent::Flushed(false)) => {
                return Err(Reason::UpstreamReset);
            }
            // After the close frame, it does not matter how the backend ends its side.
            DuplexEvent::Upstream(UpstreamEvent::Body(Err(_))) if is_close_sent => is_open = false,
            DuplexEvent::Upstream(UpstreamEvent::Body(read)) => match read? {
                Some(_) if is_close_sent => {}
                Some(chunk) => {
                    relayed.observers.observe_chunk(&chunk);
                    task.client.write(chunk)?;
                }
                None => is_open = false,
            },
            DuplexEvent::Upstream(UpstreamEvent::Head(_)) => {
                return Err(Reason::UpstreamProtocolError);
            }
            DuplexEvent::ShutdownDue => {
                is_close_sent = true;
                relayed.observers.shutdown = None;
                task.client.write(WEBSOCKET_GOING_AWAY)?;
            }
        }
    }
    task.client.shutdown().await;
    Ok(())
}

/// Waits for the next event. With `may_read` false, only queued output is flushed.
async fn next_event(
    task: &mut RequestTask<'_>,
    relayed: &mut RelayedResponse,
    may_read: bool,
) -> Result<DuplexEvent, Reason> {
    if task.client.is_flushed() && relayed.observers.is_shutdown_due(&task.context) {
        return Ok(DuplexEvent::ShutdownDue);
    }
    let deadline = relayed.idle_deadline(task);
    let accepts_body = relayed.accepts_body;
    let stream = &mut relayed.stream;
    let upstream_interest = if may_read && !stream.is_body_done() && task.client.is_flushed() {
        UpstreamInterest::Body
    } else {
        UpstreamInterest::Nothing
    };
    let is_body_done = task.body.is_done();
    let may_read_client = may_read && (is_body_done || (accepts_body && stream.is_flushed()));
    let downstream_interest = if may_read_client {
        DownstreamInterest::from_body_state(is_body_done)
    } else {
        DownstreamInterest::Nothing
    };
    let observers = &mut relayed.observers;
    let event = async {
        tokio::select! {
            biased;
            event = task.client.next_event(downstream_interest) => DuplexEvent::Client(event),
            event = stream.next_event(upstream_interest, accepts_body) => {
                DuplexEvent::Upstream(event)
            }
            () = observers.wait_until_shutdown(&task.context) => DuplexEvent::ShutdownDue,
        }
    };
    let event = clock::timeout_at(deadline, event).await;
    event.map_err(|_| relayed.timeout_reason())
}
