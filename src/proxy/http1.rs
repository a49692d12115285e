//! The life of a connection of HTTP/1: request after request, until somebody has had enough.

use std::{sync::Arc, time::Duration};

use bytes::BytesMut;
use pingora::protocols::{Stream, http::ServerSession};
use tokio::sync::watch;

use super::{
    client::{Client, ClientStream, Http1, Peer},
    listener::{Closing, Place, Shared},
    rejection::{self, Rejection},
    serve::{self, After},
    signs::Signs,
    worker::Worker,
};
use crate::{
    clock,
    telemetry::reason::Reason,
    transport::wire::{Connection, Wire},
};

/// What is read and thrown away of a request that was answered before its end, so that the client gets to read the answer: so
/// long, and so much.
const LINGER: (Duration, u64) = (Duration::from_secs(1), 1 << 20);

/// Serves a connection to its end.
pub(super) async fn serve(
    connection: Connection,
    wire: Arc<Wire>,
    peer: Peer,
    place: Place,
    worker: Arc<Worker>,
    mut closing: watch::Receiver<Closing>,
) {
    let mut stream: Stream = Box::new(connection);
    let mut prefix: Option<BytesMut> = None;
    let mut is_first = true;
    loop {
        let idle = place.shared().spec.load().limits.idle_timeout;
        let received = wire.received();
        let has_more = prefix.is_some() || (is_first && wire.has_unread());
        if !has_more && !wait_for_request(&wire, idle, &mut closing).await {
            return;
        }
        is_first = false;
        // The exchange is boxed, so that an idle connection holds little more than its socket.
        let next = Box::pin(one_request(
            stream,
            prefix.take(),
            (&wire, received),
            &peer,
            place.shared(),
            &worker,
            &closing,
        ))
        .await;
        let Some((reused, rest)) = next else { return };
        (stream, prefix) = (reused, rest);
    }
}

/// Waits between two requests; `false` if there will be none.
pub(super) async fn wait_for_request(
    wire: &Wire,
    idle: Duration,
    closing: &mut watch::Receiver<Closing>,
) -> bool {
    tokio::select! {
        biased;
        readable = clock::within(Some(idle), wire.readable()) => matches!(readable, Ok(Ok(()))),
        _ = closing.wait_for(|closing| *closing == Closing::Closed) => false,
    }
}

/// Reads, serves and finishes one request; the stream and what was read too much, if another may follow.
async fn one_request(
    stream: Stream,
    prefix: Option<BytesMut>,
    (wire, received): (&Arc<Wire>, u64),
    peer: &Peer,
    shared: &Arc<Shared>,
    worker: &Arc<Worker>,
    closing: &watch::Receiver<Closing>,
) -> Option<(Stream, Option<BytesMut>)> {
    let limits = shared.spec.load().limits;
    let mut session = Box::new(ServerSession::new_http1(stream));
    // Time is kept here, over the whole head and not over single reads.
    session.set_read_timeout(None);
    session.set_pipelining_enabled(true);
    // An interim answer must not end the connection; the relay decides.
    session.set_close_on_response_before_downstream_finish(false);
    if let Some(prefix) = prefix {
        session.set_pipelined_prefix(prefix);
    }
    let had_begun = wire.has_unread();
    wire.allow(Some(limits.max_header_bytes));
    let read = clock::within(Some(limits.header_timeout), session.read_request()).await;
    let is_too_long = wire.is_allowance_used();
    wire.allow(None);
    // What was read while the policies changed is served under the name that they know.
    let stream = ClientStream::Http1(Http1 {
        session,
        wire: wire.clone(),
    });
    let mut client = Client {
        stream,
        peer: peer.clone(),
        listener: shared.spec.load_full(),
    };
    let reason = match read {
        Ok(Ok(true)) => {
            let is_closing = *closing.borrow() > Closing::Open;
            let after = serve::serve(worker, &mut client, is_closing).await;
            return finish(client, after).await;
        }
        // Nothing came, or the client left in the middle of a head.
        Ok(Ok(false)) => return None,
        Err(clock::Elapsed) if wire.received() == received && !had_begun => return None,
        Err(clock::Elapsed) => Reason::HeaderTimeout,
        Ok(Err(_)) if is_too_long => Reason::HeaderTooLarge,
        Ok(Err(error))
            if matches!(
                error.etype,
                pingora::ErrorType::ConnectionClosed | pingora::ErrorType::ReadError
            ) =>
        {
            return None;
        }
        Ok(Err(_)) => Reason::BadRequest,
    };
    let live = worker.state.live.load();
    live.unrouted
        .refused(&worker.state.telemetry.metrics, reason);
    client.close_after();
    if rejection::answer(&mut client, &Rejection::of(reason), None, Signs::default())
        .await
        .is_ok()
    {
        linger(&mut client).await;
    }
    None
}

async fn finish(mut client: Client, after: After) -> Option<(Stream, Option<BytesMut>)> {
    let ClientStream::Http1(http1) = &mut client.stream else {
        return None;
    };
    match after {
        After::Close => None,
        // The client may be sending already what will not be read; closing at once would cost it the end of the answer.
        After::Reuse if http1.session.get_keepalive().is_some() => {
            let ClientStream::Http1(http1) = client.stream else {
                return None;
            };
            http1
                .session
                .finish()
                .await
                .ok()
                .flatten()
                .map(pingora::protocols::http::ReusableHttpStream::into_parts)
        }
        After::Reuse | After::Linger => {
            linger(&mut client).await;
            None
        }
    }
}

/// Ends our side and takes in what the client is still sending. Closing at once would reset the connection, and the client
/// might lose the answer before it has read it.
async fn linger(client: &mut Client) {
    let ClientStream::Http1(http1) = &mut client.stream else {
        return;
    };
    // A client that takes nothing more cannot be told of the end.
    _ = clock::within(Some(LINGER.0), http1.session.shutdown()).await;
    let wire = http1.wire.clone();
    let (time, bytes) = LINGER;
    let enough = wire.received() + bytes;
    let drain = async {
        // On the heap, so that it takes no room in every request's future.
        let mut scratch = vec![0_u8; 4096];
        while wire.received() < enough && wire.has_more().await.is_ok() {
            match wire.discard(&mut scratch) {
                Ok(true) => {}
                Ok(false) | Err(_) => break,
            }
        }
    };
    // Enough patience was shown either way.
    _ = clock::within(Some(time), drain).await;
}
