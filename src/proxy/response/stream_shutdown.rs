//! Ending long streams politely when this instance leaves: a WebSocket with "going away", server-sent events between two of them, a
//! stream of gRPC with UNAVAILABLE between two messages. Their clients come back, and find another instance.
//!
//! An answer whose parts cannot be told apart is not ended, and neither is one that will end by itself: a call of gRPC whose only message
//! has come is over in a moment. What the app asks of others is not ended either.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header;
use pingora::http::ResponseHeader;
use tokio::sync::watch;

use crate::{
    clock,
    proxy::{
        request::{context::RequestContext, view::RequestView},
        wire::message_boundary::MessageFraming,
    },
    resilience::lifecycle::Stage,
};

/// After its first message, a call of gRPC that is silent for so long is a stream.
const STREAMING_CALL_SILENCE: Duration = Duration::from_secs(1);

/// A close frame of a server with the status 1001, "going away" (RFC 6455 section 7.4.1).
pub(crate) const WEBSOCKET_GOING_AWAY: Bytes = Bytes::from_static(&[0x88, 2, 0x03, 0xe9]);

/// A stream that may be ended before its end.
pub(crate) struct StreamShutdown {
    framing: MessageFraming,
    /// From when on it is ended: one that began when the delay was over is not long yet, except a WebSocket.
    shutdown_stage: Stage,
    stage_receiver: Option<watch::Receiver<Stage>>,
    /// When something was passed on last.
    last_chunk_at: Option<Instant>,
}

impl StreamShutdown {
    /// Follows an answer to a caller, if it is of a kind that can be ended.
    pub(crate) fn from_response(
        context: &RequestContext<'_>,
        request: &RequestView<'_>,
        response_head: &ResponseHeader,
        is_upgrade: bool,
    ) -> Option<Self> {
        if !context.is_inbound() {
            return None;
        }
        let header_str = |name| {
            response_head
                .headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
        };
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

    /// Follows what is passed on.
    pub(crate) fn observe_chunk(&mut self, chunk: &[u8]) {
        self.framing.observe(chunk);
        if matches!(self.framing, MessageFraming::Grpc(_)) {
            self.last_chunk_at = Some(clock::now());
        }
    }

    /// Whether it is to end now, before anything more is passed on.
    pub(crate) fn is_due(&self, context: &RequestContext<'_>) -> bool {
        context.worker.state.drain.stage() >= self.shutdown_stage
            && self.framing.is_at_boundary()
            && !self.may_be_unary_call()
    }

    /// Waits until it is to end, if nothing more is passed on. Can be dropped and begun again at any time.
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
        // The state outlives this.
        _ = stage_receiver
            .wait_for(|stage| *stage >= self.shutdown_stage)
            .await;
        if is_at_boundary && !may_be_unary_call {
            return;
        }
        // In the middle of something only a call of gRPC can say that it has failed, and it does when there is no more time.
        let drained = async {
            _ = stage_receiver
                .wait_for(|stage| *stage >= Stage::Drained)
                .await;
            if !is_grpc {
                std::future::pending().await
            }
        };
        // It does not matter which of the two it was.
        _ = clock::timeout_at(silent_at, drained).await;
    }

    /// Whether it may be a call with one message, which has not come yet or will be followed by the end.
    fn may_be_unary_call(&self) -> bool {
        matches!(self.framing, MessageFraming::Grpc(_)) && self.framing.started_messages() < 2
    }
}
