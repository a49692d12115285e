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

use crate::{
    clock,
    policy::snapshot::{ListenerSpec, Protocol},
    proxy::{
        accept::{
            http1, http2,
            listener_context::{ConnectionPermit, ListenerState},
        },
        request::view::ClientIdentity,
        upstream::worker::Worker,
    },
    telemetry::metrics::name,
    transport::{
        backpressured_stream::BackpressuredStream,
        certificate,
        queued_stream::{self, ConnectionHandle, HandshakeOutcome, QueuedStream},
        socket::Socket,
    },
};

/// What a connection of HTTP/2 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves a connection to its end.
pub(crate) async fn serve(
    tcp: TcpStream,
    address: SocketAddr,
    permit: ConnectionPermit,
    worker: Arc<Worker>,
    mut listener_state: watch::Receiver<ListenerState>,
) {
    let spec = permit.listener_context().spec.load_full();
    let Some((mut connection, handle, handshake_outcome)) = accept_tls(tcp, &spec, &worker).await
    else {
        return;
    };
    let identity = ClientIdentity {
        address: address.ip(),
        is_secure: spec.tls.is_some(),
        certificate_identity: handshake_outcome
            .peer_certificate
            .as_ref()
            .and_then(|certificate| certificate::identity(certificate))
            .map(Arc::from),
    };
    let is_http2 = match (spec.protocol, handshake_outcome.alpn_protocol.as_deref()) {
        (_, Some(b"h2")) | (Protocol::Http2 | Protocol::Grpc, _) => true,
        (Protocol::Http1, _) | (Protocol::Auto, Some(_)) => false,
        (Protocol::Auto, None) => {
            match begins_with_preface(&mut connection, &handle, &spec, &mut listener_state).await {
                Some(is_http2) => is_http2,
                None => return,
            }
        }
    };
    if is_http2 {
        // On the heap, so that a connection of HTTP/1 does not carry its weight.
        Box::pin(http2::serve(
            BackpressuredStream(connection),
            identity,
            permit,
            worker,
            listener_state,
        ))
        .await;
    } else {
        http1::serve(connection, handle, identity, permit, worker, listener_state).await;
    }
}

/// Agrees on TLS, if the listener wants it.
async fn accept_tls(
    tcp: TcpStream,
    spec: &ListenerSpec,
    worker: &Worker,
) -> Option<(QueuedStream, Arc<ConnectionHandle>, HandshakeOutcome)> {
    let Some(tls) = &spec.tls else {
        let (connection, handle) = queued_stream::open(Socket::Tcp(tcp), None);
        return Some((connection, handle, HandshakeOutcome::default()));
    };
    let record_tls_failure = |why: &dyn std::fmt::Display| {
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
    let Some(material) = worker.state.tls.listener_material(tls) else {
        record_tls_failure(&"there are no certificates");
        return None;
    };
    let session = rustls::ServerConnection::new(material.config)
        .map_err(|error| record_tls_failure(&error))
        .ok()?;
    let (connection, handle) = queued_stream::open(Socket::Tcp(tcp), Some(session.into()));
    let handshake = clock::timeout(Some(spec.limits.header_timeout), handle.handshake());
    match handshake.await {
        Ok(Ok(handshake_outcome)) => Some((connection, handle, handshake_outcome)),
        Ok(Err(error)) => {
            record_tls_failure(&error);
            None
        }
        Err(clock::Elapsed) => {
            record_tls_failure(&"it took too long");
            None
        }
    }
}

/// Whether the client begins with HTTP/2; `None` if it leaves, or says too little for too long. What was read is put back.
async fn begins_with_preface(
    connection: &mut QueuedStream,
    handle: &ConnectionHandle,
    spec: &ListenerSpec,
    listener_state: &mut watch::Receiver<ListenerState>,
) -> Option<bool> {
    // Until it says something, it is like a connection between two requests.
    if !http1::wait_for_request(handle, spec.limits.idle_timeout, listener_state).await {
        return None;
    }
    let mut peeked_bytes = BytesMut::with_capacity(PREFACE.len());
    let detection = async {
        loop {
            if peeked_bytes.len() >= PREFACE.len() || !PREFACE.starts_with(&peeked_bytes) {
                return Some(peeked_bytes.starts_with(PREFACE));
            }
            let mut space = [0_u8; PREFACE.len()];
            let mut buffer = ReadBuf::new(&mut space[..PREFACE.len() - peeked_bytes.len()]);
            match connection.read_buf(&mut buffer).await {
                Ok(1..) => peeked_bytes.extend_from_slice(buffer.filled()),
                // An end in the middle is for the framing to judge.
                Ok(0) | Err(_) => return Some(false),
            }
        }
    };
    // Who says half of the sentence and no more is answered by the framing of HTTP/1, when its time for a head is over too.
    let is_http2 = clock::timeout(Some(spec.limits.header_timeout), detection)
        .await
        .unwrap_or(Some(false));
    connection.replay(peeked_bytes);
    is_http2
}
