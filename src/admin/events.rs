//! `GET /api/v1/events`: the stream of events as server-sent events.
//!
//! A subscriber first receives the events that are retained in memory, then each new event. The
//! endpoint does not know which events exist; it encodes each with its time, kind and text.

use std::{convert::Infallible, pin::Pin, task::Poll};

use axum::{
    extract::State as Extract,
    response::sse::{Event as Message, KeepAlive, Sse},
};
use futures_core::Stream;
use serde_json::json;
use tokio::sync::broadcast::{self, error::RecvError};

use crate::{admin::admin_state::AdminState, clock::Rfc3339, telemetry::EventRecord};

/// Streams the retained events first, then each new event as it is emitted.
pub(super) async fn stream_events(
    Extract(admin): Extract<AdminState>,
) -> Sse<impl Stream<Item = Result<Message, Infallible>>> {
    let receiver = admin.state.telemetry.subscribe();
    let replay = admin.state.telemetry.recent_events();
    Sse::new(EventStream::new(replay, receiver)).keep_alive(KeepAlive::default())
}

type NextEvent =
    Pin<Box<dyn Future<Output = (Option<EventRecord>, broadcast::Receiver<EventRecord>)> + Send>>;

struct EventStream {
    replay: std::vec::IntoIter<EventRecord>,
    last_replayed: u64,
    next_event: NextEvent,
}

impl EventStream {
    fn new(replay: Vec<EventRecord>, receiver: broadcast::Receiver<EventRecord>) -> Self {
        let last_replayed = replay.last().map_or(0, |event| event.sequence);
        Self {
            replay: replay.into_iter(),
            last_replayed,
            next_event: Box::pin(receive_next(receiver)),
        }
    }
}

/// Receives the next event. A subscriber that reads too slowly misses events, and gaps in the
/// event ids show how many.
async fn receive_next(
    mut receiver: broadcast::Receiver<EventRecord>,
) -> (Option<EventRecord>, broadcast::Receiver<EventRecord>) {
    loop {
        match receiver.recv().await {
            Ok(event) => return (Some(event), receiver),
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return (None, receiver),
        }
    }
}

impl Stream for EventStream {
    type Item = Result<Message, Infallible>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Option<Self::Item>> {
        if let Some(replay) = self.replay.next() {
            return Poll::Ready(Some(Ok(encode_event(&replay))));
        }
        loop {
            let (event, receiver) = std::task::ready!(self.next_event.as_mut().poll(context));
            self.next_event = Box::pin(receive_next(receiver));
            match event {
                // The replay already contained this event.
                Some(event) if event.sequence <= self.last_replayed => {}
                Some(event) => return Poll::Ready(Some(Ok(encode_event(&event)))),
                None => return Poll::Ready(None),
            }
        }
    }
}

fn encode_event(numbered: &EventRecord) -> Message {
    let data = json!({
        "at": Rfc3339(numbered.emitted_at).to_string(),
        "kind": numbered.event.kind(),
        "text": numbered.event.to_string(),
    });
    Message::default()
        .id(numbered.sequence.to_string())
        .event(numbered.event.kind())
        .data(data.to_string())
}
