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

use super::{boundary::Parts, client::Client, serve::Exchange};
use crate::{clock, policy::document::Direction, resilience::lifecycle::Stage};

/// After its first message, a call of gRPC that is silent for so long is a stream.
const SILENCE: Duration = Duration::from_secs(1);

/// A close frame of a server with the status 1001, "going away" (RFC 6455 section 7.4.1).
pub(super) const GOING_AWAY: Bytes = Bytes::from_static(&[0x88, 2, 0x03, 0xe9]);

/// A stream that may be ended before its end.
pub(super) struct Parting {
    parts: Parts,
    /// From when on it is ended: one that began when the delay was over is not long yet, except a WebSocket.
    from: Stage,
    stages: Option<watch::Receiver<Stage>>,
    /// When something was passed on last.
    last: Option<Instant>,
}

impl Parting {
    /// Follows an answer to a caller, if it is of a kind that can be ended.
    pub(super) fn of(
        exchange: &Exchange<'_>,
        client: &Client,
        answer: &ResponseHeader,
        is_upgrade: bool,
    ) -> Option<Self> {
        if exchange.route.spec.direction != Direction::Inbound {
            return None;
        }
        let text = |name| {
            answer
                .headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
        };
        let is_events = || {
            text(header::CONTENT_TYPE).starts_with("text/event-stream")
                && !answer.headers.contains_key(header::CONTENT_ENCODING)
        };
        let parts = if is_upgrade {
            text(header::UPGRADE)
                .eq_ignore_ascii_case("websocket")
                .then(Parts::websocket)?
        } else if client.is_grpc() {
            Parts::grpc()
        } else if is_events() && !answer.headers.contains_key(header::CONTENT_LENGTH) {
            Parts::events()
        } else {
            return None;
        };
        let is_long = matches!(parts, Parts::WebSocket(_))
            || exchange.worker.state.departure.stage() < Stage::Waiting;
        Some(Self {
            parts,
            from: if is_long {
                Stage::Parting
            } else {
                Stage::Drained
            },
            stages: None,
            last: None,
        })
    }

    /// Follows what is passed on.
    pub(super) fn note(&mut self, piece: &[u8]) {
        self.parts.note(piece);
        if matches!(self.parts, Parts::Grpc(_)) {
            self.last = Some(clock::now());
        }
    }

    /// Whether it is to end now, before anything more is passed on.
    pub(super) fn is_due(&self, exchange: &Exchange<'_>) -> bool {
        exchange.worker.state.departure.stage() >= self.from
            && self.parts.is_between()
            && !self.may_end_by_itself()
    }

    /// Waits until it is to end, if nothing more is passed on. Can be dropped and begun again at any time.
    pub(super) async fn due(&mut self, exchange: &Exchange<'_>) {
        let (is_between, may_end_by_itself) = (self.parts.is_between(), self.may_end_by_itself());
        let silent_at = self
            .last
            .filter(|_| is_between && self.parts.count() == 1)
            .map(|last| last + SILENCE);
        let is_grpc = matches!(self.parts, Parts::Grpc(_));
        let stages = self
            .stages
            .get_or_insert_with(|| exchange.worker.state.departure.stages());
        // The state outlives this.
        _ = stages.wait_for(|stage| *stage >= self.from).await;
        if is_between && !may_end_by_itself {
            return;
        }
        // In the middle of something only a call of gRPC can say that it has failed, and it does when there is no more time.
        let over = async {
            _ = stages.wait_for(|stage| *stage >= Stage::Drained).await;
            if !is_grpc {
                std::future::pending().await
            }
        };
        // It does not matter which of the two it was.
        _ = clock::until(silent_at, over).await;
    }

    /// Whether it may be a call with one message, which has not come yet or will be followed by the end.
    fn may_end_by_itself(&self) -> bool {
        matches!(self.parts, Parts::Grpc(_)) && self.parts.count() < 2
    }
}

/// The same for an answer that may be of no such kind.
pub(super) async fn due(parting: &mut Option<Parting>, exchange: &Exchange<'_>) {
    match parting {
        Some(parting) => parting.due(exchange).await,
        None => std::future::pending().await,
    }
}

/// Whether an answer is to end now.
pub(super) fn is_due(parting: Option<&Parting>, exchange: &Exchange<'_>) -> bool {
    parting.is_some_and(|parting| parting.is_due(exchange))
}
