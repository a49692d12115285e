//! HTTP/2 on both sides of the sidecar, with the `h2` crate: a scripted backend and a client.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, Request, Response};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
    sync::oneshot,
};

use super::TEST_TIMEOUT;

/// Request received by a backend.
pub(crate) struct IncomingCall {
    pub(crate) head: http::request::Parts,
    pub(crate) body: RecvStream,
    pub(crate) responder: SendResponse<Bytes>,
}

/// Running HTTP/2 backend without TLS, stopped on drop.
pub(crate) struct Http2Backend {
    pub(crate) address: SocketAddr,
    request_heads: Arc<Mutex<Vec<http::request::Parts>>>,
    connections: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
}

impl Http2Backend {
    /// Starts a backend that runs the script for each request.
    pub(crate) fn start<F: Future<Output = ()> + Send + 'static>(
        script: impl Fn(IncomingCall) -> F + Send + Sync + 'static,
    ) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (request_heads, connections) = (
            Arc::new(Mutex::new(Vec::new())),
            Arc::new(AtomicUsize::new(0)),
        );
        let (stop, stopped) = oneshot::channel();
        let (shared_request_heads, shared_connections) =
            (request_heads.clone(), connections.clone());
        let script = Arc::new(script);
        thread::spawn(move || {
            let accept = async {
                loop {
                    let (tcp, _) = listener.accept().await.unwrap();
                    shared_connections.fetch_add(1, Ordering::SeqCst);
                    let (script, request_heads) = (script.clone(), shared_request_heads.clone());
                    tokio::spawn(async move {
                        let Ok(mut connection) = h2::server::handshake(tcp).await else {
                            return;
                        };
                        while let Some(Ok((request, responder))) = connection.accept().await {
                            let (head, body) = request.into_parts();
                            request_heads.lock().unwrap().push(head.clone());
                            tokio::spawn(script(IncomingCall {
                                head,
                                body,
                                responder,
                            }));
                        }
                    });
                }
            };
            runtime.block_on(async {
                tokio::select! {
                    () = accept => {}
                    _ = stopped => {}
                }
            });
        });
        Self {
            address,
            request_heads,
            connections,
            stop: Some(stop),
        }
    }

    /// Starts a backend that responds 200, with the body and the trailers of the request.
    pub(crate) fn echoing() -> Self {
        Self::start(|mut call| async move {
            let (body, trailers) = read_body_and_trailers(&mut call.body).await;
            let mut stream = call
                .responder
                .send_response(Response::new(()), false)
                .unwrap();
            stream.send_data(body, trailers.is_none()).unwrap();
            if let Some(trailers) = trailers {
                stream.send_trailers(trailers).unwrap();
            }
        })
    }

    /// Returns the heads of the requests received so far.
    pub(crate) fn request_heads(&self) -> Vec<http::request::Parts> {
        self.request_heads.lock().unwrap().clone()
    }

    /// Returns the number of connections accepted so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Http2Backend {
    fn drop(&mut self) {
        // The send fails only if the thread has ended.
        self.stop.take().map(|stop| stop.send(()));
    }
}

/// Reads a body to its end, with its trailers.
pub(crate) async fn read_body_and_trailers(body: &mut RecvStream) -> (Bytes, Option<HeaderMap>) {
    let mut all = Vec::new();
    while let Some(piece) = body.data().await {
        let Ok(piece) = piece else {
            return (all.into(), None);
        };
        _ = body.flow_control().release_capacity(piece.len());
        all.extend_from_slice(&piece);
    }
    (all.into(), body.trailers().await.ok().flatten())
}

/// Client with one HTTP/2 connection.
pub(crate) struct Http2Client {
    pub(crate) runtime: Runtime,
    pub(crate) sender: h2::client::SendRequest<Bytes>,
}

/// Response that was read to its end.
#[derive(Debug)]
pub(crate) struct ReceivedHttp2Response {
    pub(crate) status: u16,
    pub(crate) head: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

impl ReceivedHttp2Response {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.head
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// Returns the gRPC status from the head or the trailers.
    pub(crate) fn grpc_status(&self) -> Option<&str> {
        let grpc_status_in = |fields: &'_ HeaderMap| {
            fields
                .get("grpc-status")
                .map(|status| status.to_str().unwrap().to_owned())
        };
        grpc_status_in(&self.head)
            .or_else(|| self.trailers.as_ref().and_then(grpc_status_in))
            .map(|status| &*status.leak())
    }
}

impl Http2Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let tcp = runtime.block_on(TcpStream::connect(address)).unwrap();
        Self::from_stream(runtime, tcp)
    }

    pub(crate) fn from_stream(
        runtime: Runtime,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Self {
        let (sender, connection) = runtime.block_on(h2::client::handshake(stream)).unwrap();
        runtime.spawn(async move {
            // The requests in flight receive the error too.
            _ = connection.await;
        });
        Self { runtime, sender }
    }

    /// Sends one request with its body and trailers, and reads the response.
    pub(crate) fn send_request(
        &self,
        request: Request<()>,
        body: &[u8],
        trailers: Option<HeaderMap>,
    ) -> Result<ReceivedHttp2Response, h2::Error> {
        let sender = self.sender.clone();
        let body = Bytes::copy_from_slice(body);
        let round_trip = async move {
            let mut sender = sender.ready().await?;
            let (response, mut stream) =
                sender.send_request(request, body.is_empty() && trailers.is_none())?;
            // A peer that responds early may reset the stream. The response is the result.
            if !body.is_empty() {
                _ = stream.send_data(body, trailers.is_none());
            }
            if let Some(trailers) = trailers {
                _ = stream.send_trailers(trailers);
            }
            read_response(response.await?).await
        };
        self.runtime.block_on(async {
            tokio::time::timeout(TEST_TIMEOUT, round_trip)
                .await
                .expect("the peer responds within the test timeout")
        })
    }

    pub(crate) fn get(&self, path: &str) -> ReceivedHttp2Response {
        self.send_request(
            Request::get(format!("http://test{path}")).body(()).unwrap(),
            b"",
            None,
        )
        .unwrap()
    }

    pub(crate) fn post(&self, path: &str, body: &[u8]) -> ReceivedHttp2Response {
        self.send_request(
            Request::post(format!("http://test{path}"))
                .body(())
                .unwrap(),
            body,
            None,
        )
        .unwrap()
    }

    /// Sends a gRPC request with one message.
    pub(crate) fn call_grpc(&self, path: &str, timeout: Option<&str>) -> ReceivedHttp2Response {
        let mut request = Request::post(format!("http://test{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        if let Some(timeout) = timeout {
            request
                .headers_mut()
                .insert("grpc-timeout", timeout.parse().unwrap());
        }
        self.send_request(request, &grpc_message(b"hello"), None)
            .unwrap()
    }
}

/// Reads a response to its end.
pub(crate) async fn read_response(
    response: Response<RecvStream>,
) -> Result<ReceivedHttp2Response, h2::Error> {
    let (head, mut body) = response.into_parts();
    let mut all = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        _ = body.flow_control().release_capacity(piece.len());
        all.extend_from_slice(&piece);
    }
    Ok(ReceivedHttp2Response {
        status: head.status.as_u16(),
        head: head.headers,
        body: all.into(),
        trailers: body.trailers().await?,
    })
}

/// Encodes a gRPC message with its length prefix.
pub(crate) fn grpc_message(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[0], &length[..], bytes].concat()
}

/// Returns trailers with a gRPC status.
pub(crate) fn grpc_status_trailers(status: &str) -> HeaderMap {
    HeaderMap::from_iter([("grpc-status".parse().unwrap(), status.parse().unwrap())])
}
