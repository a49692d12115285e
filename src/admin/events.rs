//! The stream of events, for whoever wants to see them as they happen.

use std::{convert::Infallible, pin::Pin, task::Poll};

use axum::{
    extract::State as Extract,
    response::sse::{Event as Message, KeepAlive, Sse},
};
use futures_core::Stream;
use serde_json::json;
use tokio::sync::broadcast::{self, error::RecvError};

use super::Admin;
use crate::{clock::Rfc3339, telemetry::Numbered};

/// First the events that are remembered, then each new one.
pub(super) async fn stream(
    Extract(admin): Extract<Admin>,
) -> Sse<impl Stream<Item = Result<Message, Infallible>>> {
    let receiver = admin.state.telemetry.subscribe();
    let past = admin.state.telemetry.recent();
    Sse::new(Events::new(past, receiver)).keep_alive(KeepAlive::default())
}

type Next = Pin<Box<dyn Future<Output = (Option<Numbered>, broadcast::Receiver<Numbered>)> + Send>>;

struct Events {
    past: std::vec::IntoIter<Numbered>,
    last: u64,
    next: Next,
}

impl Events {
    fn new(past: Vec<Numbered>, receiver: broadcast::Receiver<Numbered>) -> Self {
        let last = past.last().map_or(0, |event| event.number);
        Self {
            past: past.into_iter(),
            last,
            next: Box::pin(receive(receiver)),
        }
    }
}

/// Who reads too slowly misses events; their numbers show how many.
async fn receive(
    mut receiver: broadcast::Receiver<Numbered>,
) -> (Option<Numbered>, broadcast::Receiver<Numbered>) {
    loop {
        match receiver.recv().await {
            Ok(event) => return (Some(event), receiver),
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return (None, receiver),
        }
    }
}

impl Stream for Events {
    type Item = Result<Message, Infallible>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Option<Self::Item>> {
        if let Some(past) = self.past.next() {
            return Poll::Ready(Some(Ok(message(&past))));
        }
        loop {
            let (event, receiver) = std::task::ready!(self.next.as_mut().poll(context));
            self.next = Box::pin(receive(receiver));
            match event {
                // It was among those that were remembered.
                Some(event) if event.number <= self.last => {}
                Some(event) => return Poll::Ready(Some(Ok(message(&event)))),
                None => return Poll::Ready(None),
            }
        }
    }
}

fn message(numbered: &Numbered) -> Message {
    let data = json!({"at": Rfc3339(numbered.at).to_string(), "kind": numbered.event.kind(), "text": numbered.event.to_string()});
    Message::default()
        .id(numbered.number.to_string())
        .event(numbered.event.kind())
        .data(data.to_string())
}
