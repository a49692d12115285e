//! Ends long-lived streams at a message boundary while this instance drains.
//!
//! - A WebSocket client receives a close frame with the status "going away".
//! - A stream of server-sent events ends between two events.
//! - A gRPC stream ends with UNAVAILABLE between two messages.
//!
//! The clients reconnect and reach another instance.
//!
//! Some responses are not ended:
//!
//! - responses without recognizable boundaries,
//! - gRPC calls that may be unary, because they end by themselves soon after their only
//!   message,
//! - responses to outbound requests of the app.
//!
//! The module decides only when a stream ends. It does not write the end.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header;
use tokio::sync::watch;

use crate::{
    clock,
    message::ResponseHead,
    proxy::{
        request::{context::RequestContext, view::RequestView},
        wire::message_boundary::MessageFraming,
    },
    resilience::lifecycle::Stage,
};

/// Silence after the first message of a gRPC call from which the call counts as a stream.
const STREAMING_CALL_SILENCE: Duration = Duration::from_secs(1);

/// WebSocket close frame of a server with the status 1001, "going away" (RFC 6455 section
/// 7.4.1).
pub(crate) const WEBSOCKET_GOING_AWAY: Bytes = Bytes::from_static(&[0x88, 2, 0x03, 0xe9]);

/// A stream that may be ended early while the instance drains.
pub(crate) struct StreamShutdown {
    framing: MessageFraming,
    /// Drain stage from which the stream is ended.
    ///
    /// A WebSocket is always long-lived. Any other stream that began after the drain delay is
    /// not, and is ended only when the instance is drained.
    shutdown_stage: Stage,
    stage_receiver: Option<watch::Receiver<Stage>>,
    /// Time at which the last chunk of a gRPC call was forwarded; `None` for other protocols.
    last_chunk_at: Option<Instant>,
}

impl StreamShutdown {
    /// Observes a response to a client. Returns `None` if it is of a kind that cannot end
    /// early.
    pub(crate) fn from_response(
        context: &RequestContext<'_>,
        request: &RequestView<'_>,
        response_head: &ResponseHead,
        is_upgrade: bool,
    ) -> Option<Self> {
        if !context.is_inbound() {
            return None;
        }
        let header_str = |name| response_head.headers.get_str(name).unwrap_or_default();
        let is_event_stream = || {
            header_str(header::CONTENT_TYPE).starts_with("text/event-stream")
                && !response_head.headers.contains_key(header::CONTENT_ENCODING)
        };
        let framing = if is_upgrade {
            header_str(header::UPGRADE)
                .eq_ignore_ascii_case("websocket")
                .then(MessageFraming::websocket)?
        } else if request.is_grpc {
            MessageFraming::grpc()
        } else if is_event_stream() && !response_head.headers.contains_key(header::CONTENT_LENGTH) {
            MessageFraming::event_stream()
        } else {
            return None;
        };
        let is_long_lived = matches!(framing, MessageFraming::WebSocket(_))
            || context.worker.state.drain.stage() < Stage::AwaitingQuiet;
        Some(Self {
            framing,
            shutdown_stage: if is_long_lived {
                Stage::ClosingStreams
            } else {
                Stage::Drained
            },
            stage_receiver: None,
            last_chunk_at: None,
        })
    }

    /// Records a chunk that is forwarded to the client.
    pub(crate) fn observe_chunk(&mut self, chunk: &[u8]) {
        self.framing.observe(chunk);
        if matches!(self.framing, MessageFraming::Grpc(_)) {
            self.last_chunk_at = Some(clock::now());
        }
    }

    /// Returns whether the stream must end now, before another chunk is forwarded.
    pub(crate) fn is_due(&self, context: &RequestContext<'_>) -> bool {
        context.worker.state.drain.stage() >= self.shutdown_stage
            && self.framing.is_at_boundary()
            && !self.may_be_unary_call()
    }

    /// Waits until the stream must end, provided that no further chunk is forwarded meanwhile.
    ///
    /// Cancel safe: a dropped call has no effect.
    pub(crate) async fn wait_until_due(&mut self, context: &RequestContext<'_>) {
        let (is_at_boundary, may_be_unary_call) =
            (self.framing.is_at_boundary(), self.may_be_unary_call());
        let silent_at = self
            .last_chunk_at
            .filter(|_| is_at_boundary && self.framing.started_messages() == 1)
            .map(|last_chunk_at| last_chunk_at + STREAMING_CALL_SILENCE);
        let is_grpc = matches!(self.framing, MessageFraming::Grpc(_));
        let stage_receiver = self
            .stage_receiver
            .get_or_insert_with(|| context.worker.state.drain.subscribe_stages());
        // The sender is part of the instance state and outlives this stream, so the wait cannot
        // fail.
        _ = stage_receiver
            .wait_for(|stage| *stage >= self.shutdown_stage)
            .await;
        if is_at_boundary && !may_be_unary_call {
            return;
        }
        // In the middle of a message, only gRPC can report a failure to the client. It does so
        // once the instance is drained.
        let drained = async {
            _ = stage_receiver
                .wait_for(|stage| *stage >= Stage::Drained)
                .await;
            if !is_grpc {
                std::future::pending().await
            }
        };
        // Both the silence and the drained stage end the stream, so the result has no meaning.
        _ = clock::timeout_at(silent_at, drained).await;
    }

    /// Returns whether the call may be unary: its only message is still to arrive, or its end
    /// follows the message.
    fn may_be_unary_call(&self) -> bool {
        matches!(self.framing, MessageFraming::Grpc(_)) && self.framing.started_messages() < 2
    }
}
