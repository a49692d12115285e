//! A new connection of a client: who it is, and what it speaks.
//!
//! Under TLS both is agreed on at once. Without, a connection of HTTP/2 begins with a sentence that no request of HTTP/1 can begin with
//! (RFC 9113 section 3.4); it is read byte by byte as it comes, and given up at the first that differs. So a request that is
//! shorter than the sentence is not waited for, and a connection that says nothing costs nothing but its socket.

use std::{net::SocketAddr, sync::Arc};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, ReadBuf},
    net::TcpStream,
    sync::watch,
};

use super::{
    client::Peer,
    http1, http2,
    listener::{Closing, Place},
    worker::Worker,
};
use crate::{
    clock,
    policy::snapshot::{ListenerSpec, Protocol},
    telemetry::metrics::name,
    transport::{
        certificate,
        paced::Paced,
        socket::Socket,
        wire::{self, Agreed, Connection, Wire},
    },
};

/// What a connection of HTTP/2 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves a connection to its end.
pub(super) async fn serve(
    tcp: TcpStream,
    address: SocketAddr,
    place: Place,
    worker: Arc<Worker>,
    mut closing: watch::Receiver<Closing>,
) {
    let spec = place.shared().spec.load_full();
    let Some((mut connection, wire, agreed)) = open(tcp, &spec, &worker).await else {
        return;
    };
    let peer = Peer {
        address: address.ip(),
        is_secure: spec.tls.is_some(),
        identity: agreed
            .peer
            .as_ref()
            .and_then(|certificate| certificate::identity(certificate))
            .map(Arc::from),
    };
    let is_http2 = match (spec.protocol, agreed.protocol.as_deref()) {
        (_, Some(b"h2")) | (Protocol::Http2 | Protocol::Grpc, _) => true,
        (Protocol::Http1, _) | (Protocol::Auto, Some(_)) => false,
        (Protocol::Auto, None) => {
            match begins_with_preface(&mut connection, &wire, &spec, &mut closing).await {
                Some(is_http2) => is_http2,
                None => return,
            }
        }
    };
    if is_http2 {
        // On the heap, so that a connection of HTTP/1 does not carry its weight.
        Box::pin(http2::connection::serve(
            Paced(connection),
            peer,
            place,
            worker,
            closing,
        ))
        .await;
    } else {
        http1::serve(connection, wire, peer, place, worker, closing).await;
    }
}

/// Agrees on TLS, if the listener wants it.
async fn open(
    tcp: TcpStream,
    spec: &ListenerSpec,
    worker: &Worker,
) -> Option<(Connection, Arc<Wire>, Agreed)> {
    let Some(tls) = &spec.tls else {
        let (connection, wire) = wire::open(Socket::Tcp(tcp), None);
        return Some((connection, wire, Agreed::default()));
    };
    let failed = |why: &dyn std::fmt::Display| {
        tracing::debug!("no TLS with a client of the listener {}: {why}", spec.name);
        worker
            .state
            .telemetry
            .metrics
            .counter(
                name::TLS_FAILURES,
                &[("owner", &format!("listener {}", spec.name))],
            )
            .increment(1);
    };
    let Some(material) = worker.state.tls.server(tls) else {
        failed(&"there are no certificates");
        return None;
    };
    let session = rustls::ServerConnection::new(material.config)
        .map_err(|error| failed(&error))
        .ok()?;
    let (connection, wire) = wire::open(Socket::Tcp(tcp), Some(session.into()));
    let agreeing = clock::within(Some(spec.limits.header_timeout), wire.handshake());
    match agreeing.await {
        Ok(Ok(agreed)) => Some((connection, wire, agreed)),
        Ok(Err(error)) => {
            failed(&error);
            None
        }
        Err(clock::Elapsed) => {
            failed(&"it took too long");
            None
        }
    }
}

/// Whether the client begins with HTTP/2; `None` if it leaves, or says too little for too long. What was read is put back.
async fn begins_with_preface(
    connection: &mut Connection,
    wire: &Wire,
    spec: &ListenerSpec,
    closing: &mut watch::Receiver<Closing>,
) -> Option<bool> {
    // Until it says something, it is like a connection between two requests.
    if !http1::wait_for_request(wire, spec.limits.idle_timeout, closing).await {
        return None;
    }
    let mut read = BytesMut::with_capacity(PREFACE.len());
    let decide = async {
        loop {
            if read.len() >= PREFACE.len() || !PREFACE.starts_with(&read) {
                return Some(read.starts_with(PREFACE));
            }
            let mut space = [0_u8; PREFACE.len()];
            let mut buffer = ReadBuf::new(&mut space[..PREFACE.len() - read.len()]);
            match connection.read_buf(&mut buffer).await {
                Ok(1..) => read.extend_from_slice(buffer.filled()),
                // An end in the middle is for the framing to judge.
                Ok(0) | Err(_) => return Some(false),
            }
        }
    };
    // Who says half of the sentence and no more is answered by the framing of HTTP/1, when its time for a head is over too.
    let decided = clock::within(Some(spec.limits.header_timeout), decide)
        .await
        .unwrap_or(Some(false));
    connection.put_back(read);
    decided
}
