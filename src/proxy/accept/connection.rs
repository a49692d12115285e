//! Decides the protocol of a new client connection, and who its client is.
//!
//! With TLS, the handshake determines both. Without TLS, a listener with `protocol: auto`
//! recognizes HTTP/2 by its connection preface, which no HTTP/1 request can start with (RFC
//! 9113 section 3.4). The bytes are compared as they arrive, and the first one that differs
//! means HTTP/1. A request that is shorter than the preface is therefore not delayed. A silent
//! connection occupies only its socket and its connection permit.
//!
//! This module does not read requests; [`http1`] and [`http2`] do.

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
            connection_table::ConnectionActivity,
            http1, http2,
            listener_context::{AcceptingWorker, ConnectionPermit, ListenerState, OpenConnection},
        },
        request::view::ClientIdentity,
        upstream::worker::Worker,
    },
    resilience::memory_pressure::MemoryLevel,
    telemetry::{memory_measure::MemoryMeasure, tls_subject::TlsSubject},
    transport::{
        certificate,
        queued_stream::{self, HandshakeOutcome, QueuedStream},
        socket::Socket,
    },
};

/// Connection preface of an HTTP/2 client (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves a client connection until it closes. The permit is released at that moment.
pub(crate) async fn serve(
    tcp: TcpStream,
    address: SocketAddr,
    permit: ConnectionPermit,
    worker: Arc<AcceptingWorker>,
    mut listener_state: watch::Receiver<ListenerState>,
) {
    let spec = permit.listener_context().spec.load_full();
    let AcceptingWorker { worker, table } = &*worker;
    let Some(mut connection) = open_stream(tcp, &spec, worker) else {
        return;
    };
    let entry = table.add(connection.handle().clone(), ConnectionActivity::Handshake);
    let Some(handshake_outcome) = complete_handshake(&connection, &spec, worker).await else {
        return;
    };
    entry.connection.set_activity(ConnectionActivity::Idle);
    let worker = worker.clone();
    let certificate_identity = handshake_outcome
        .peer_certificate
        .as_ref()
        .and_then(|certificate| certificate::identity(certificate))
        .map(Arc::from);
    let identity = ClientIdentity::new(address.ip(), spec.tls.is_some(), certificate_identity);
    let is_http2 = match (spec.protocol, handshake_outcome.alpn_protocol.as_deref()) {
        (_, Some(b"h2")) | (Protocol::Http2 | Protocol::Grpc, _) => true,
        (Protocol::Http1, _) | (Protocol::Auto, Some(_)) => false,
        (Protocol::Auto, None) => {
            match begins_with_preface(&mut connection, &spec, &mut listener_state).await {
                Some(is_http2) => is_http2,
                None => return,
            }
        }
    };
    // An HTTP/2 connection holds buffers even without a stream.
    if is_http2 && worker.is_memory_exhausted() {
        let memory = &worker.state.memory;
        return memory.record(MemoryMeasure::RefuseConnection);
    }
    let open = OpenConnection {
        permit,
        entry,
        identity,
        stream: connection,
    };
    if is_http2 {
        // Boxing keeps the future of every HTTP/1 connection small.
        Box::pin(http2::serve(open, worker, listener_state)).await;
    } else {
        http1::serve(open, worker, listener_state).await;
    }
}

/// Returns the stream of a new connection, with a TLS session if the listener uses TLS.
///
/// Returns `None` if there is no certificate; the failure is then counted.
fn open_stream(tcp: TcpStream, spec: &ListenerSpec, worker: &Worker) -> Option<QueuedStream> {
    let Some(tls) = &spec.tls else {
        return Some(queued_stream::open(Socket::Tcp(tcp), None));
    };
    let Some(material) = worker.state.tls.listener_material(tls) else {
        record_tls_failure(spec, worker, &"there are no certificates");
        return None;
    };
    let session = rustls::ServerConnection::new(material.config)
        .map_err(|error| record_tls_failure(spec, worker, &error))
        .ok()?;
    Some(queued_stream::open(Socket::Tcp(tcp), Some(session.into())))
}

/// Completes the TLS handshake, if the listener uses TLS.
///
/// Returns `None` if the handshake fails or exceeds the header timeout; the failure is then
/// counted.
async fn complete_handshake(
    connection: &QueuedStream,
    spec: &ListenerSpec,
    worker: &Worker,
) -> Option<HandshakeOutcome> {
    if spec.tls.is_none() {
        return Some(HandshakeOutcome::default());
    }
    let handle = connection.handle();
    let handshake = async {
        // The response to the first message of the client needs more memory than the connection.
        handle.bytes_arrived().await?;
        if worker.memory_level() >= MemoryLevel::High {
            return Ok(None);
        }
        handle.handshake().await.map(Some)
    };
    match clock::timeout(Some(spec.limits.header_timeout), handshake).await {
        Ok(Ok(Some(handshake_outcome))) => return Some(handshake_outcome),
        Ok(Ok(None)) => worker.state.memory.record(MemoryMeasure::CloseHandshake),
        Ok(Err(error)) => record_tls_failure(spec, worker, &error),
        Err(clock::Elapsed) => record_tls_failure(spec, worker, &"the handshake timed out"),
    }
    None
}

fn record_tls_failure(spec: &ListenerSpec, worker: &Worker, why: &dyn std::fmt::Display) {
    tracing::debug!("no TLS with a client of the listener {}: {why}", spec.name);
    worker
        .state
        .telemetry
        .metrics
        .record_tls_failure(&TlsSubject::Listener(spec.name.clone()));
}

/// Returns whether the client starts with the HTTP/2 preface. The bytes that were read are put
/// back.
///
/// Returns `None` if no byte arrives within the idle timeout, the connection breaks, or the
/// listener closes first. An incomplete preface counts as HTTP/1, after the header timeout or
/// the end of the input.
async fn begins_with_preface(
    connection: &mut QueuedStream,
    spec: &ListenerSpec,
    listener_state: &mut watch::Receiver<ListenerState>,
) -> Option<bool> {
    // A connection without bytes is idle, as it is between two requests.
    if !http1::wait_for_request(
        connection.handle(),
        spec.limits.idle_timeout,
        listener_state,
    )
    .await
    {
        return None;
    }
    let mut peeked_bytes = BytesMut::with_capacity(PREFACE.len());
    let detection = async {
        loop {
            if peeked_bytes.len() >= PREFACE.len() || !PREFACE.starts_with(&peeked_bytes) {
                return peeked_bytes.starts_with(PREFACE);
            }
            let mut space = [0_u8; PREFACE.len()];
            let mut buffer = ReadBuf::new(&mut space[..PREFACE.len() - peeked_bytes.len()]);
            match connection.read_buf(&mut buffer).await {
                Ok(1..) => peeked_bytes.extend_from_slice(buffer.filled()),
                // The HTTP/1 session handles a connection that ends early.
                Ok(0) | Err(_) => return false,
            }
        }
    };
    // A client that stalls within the preface gets the response of HTTP/1, whose header timeout
    // then runs as well.
    let is_http2 = clock::timeout(Some(spec.limits.header_timeout), detection)
        .await
        .unwrap_or(false);
    connection.replay(peeked_bytes);
    Some(is_http2)
}
