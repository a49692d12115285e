//! HTTP/2 on both sides of the sidecar, by the h2 crate: a backend that does what its script says, and a client.

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

use super::PATIENCE;

/// A call that arrived at a backend.
pub(crate) struct Call {
    pub(crate) head: http::request::Parts,
    pub(crate) body: RecvStream,
    pub(crate) respond: SendResponse<Bytes>,
}

/// A running backend of HTTP/2 without TLS.
pub(crate) struct Http2Backend {
    pub(crate) address: SocketAddr,
    heads: Arc<Mutex<Vec<http::request::Parts>>>,
    connections: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
}

impl Http2Backend {
    /// Runs a script for each call.
    pub(crate) fn start<F: Future<Output = ()> + Send + 'static>(
        script: impl Fn(Call) -> F + Send + Sync + 'static,
    ) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (heads, connections) = (
            Arc::new(Mutex::new(Vec::new())),
            Arc::new(AtomicUsize::new(0)),
        );
        let (stop, stopped) = oneshot::channel();
        let (heads_there, connections_there) = (heads.clone(), connections.clone());
        let script = Arc::new(script);
        thread::spawn(move || {
            let accept = async {
                loop {
                    let (tcp, _) = listener.accept().await.unwrap();
                    connections_there.fetch_add(1, Ordering::SeqCst);
                    let (script, heads) = (script.clone(), heads_there.clone());
                    tokio::spawn(async move {
                        let Ok(mut connection) = h2::server::handshake(tcp).await else {
                            return;
                        };
                        while let Some(Ok((request, respond))) = connection.accept().await {
                            let (head, body) = request.into_parts();
                            heads.lock().unwrap().push(head.clone());
                            tokio::spawn(script(Call {
                                head,
                                body,
                                respond,
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
            heads,
            connections,
            stop: Some(stop),
        }
    }

    /// Answers every call with 200 and what it was sent.
    pub(crate) fn echoing() -> Self {
        Self::start(|mut call| async move {
            let (body, trailers) = collect(&mut call.body).await;
            let mut stream = call
                .respond
                .send_response(Response::new(()), false)
                .unwrap();
            stream.send_data(body, trailers.is_none()).unwrap();
            if let Some(trailers) = trailers {
                stream.send_trailers(trailers).unwrap();
            }
        })
    }

    /// The heads of the calls so far.
    pub(crate) fn heads(&self) -> Vec<http::request::Parts> {
        self.heads.lock().unwrap().clone()
    }

    /// The connections that were made so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Http2Backend {
    fn drop(&mut self) {
        // If the thread is gone, it has stopped.
        self.stop.take().map(|stop| stop.send(()));
    }
}

/// Reads a body to its end.
pub(crate) async fn collect(body: &mut RecvStream) -> (Bytes, Option<HeaderMap>) {
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

/// One connection of a client.
pub(crate) struct Http2Client {
    pub(crate) runtime: Runtime,
    pub(crate) send: h2::client::SendRequest<Bytes>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Http2Answer {
    pub(crate) status: u16,
    pub(crate) head: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Http2Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.head
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// The status of gRPC, wherever it stands.
    pub(crate) fn grpc_status(&self) -> Option<&str> {
        let of = |fields: &'_ HeaderMap| {
            fields
                .get("grpc-status")
                .map(|status| status.to_str().unwrap().to_owned())
        };
        of(&self.head)
            .or_else(|| self.trailers.as_ref().and_then(of))
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
        Self::over(runtime, tcp)
    }

    pub(crate) fn over(
        runtime: Runtime,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Self {
        let (send, connection) = runtime.block_on(h2::client::handshake(stream)).unwrap();
        runtime.spawn(async move {
            // Whoever waits for an answer is told by it.
            _ = connection.await;
        });
        Self { runtime, send }
    }

    /// One request with its body.
    pub(crate) fn ask(
        &self,
        request: Request<()>,
        body: &[u8],
        trailers: Option<HeaderMap>,
    ) -> Result<Http2Answer, h2::Error> {
        let send = self.send.clone();
        let body = Bytes::copy_from_slice(body);
        let exchange = async move {
            let mut send = send.ready().await?;
            let (response, mut stream) =
                send.send_request(request, body.is_empty() && trailers.is_none())?;
            // Who is refused at once need not send the rest; the answer tells.
            if !body.is_empty() {
                _ = stream.send_data(body, trailers.is_none());
            }
            if let Some(trailers) = trailers {
                _ = stream.send_trailers(trailers);
            }
            read(response.await?).await
        };
        self.runtime.block_on(async {
            tokio::time::timeout(PATIENCE, exchange)
                .await
                .expect("an answer in time")
        })
    }

    pub(crate) fn get(&self, path: &str) -> Http2Answer {
        self.ask(
            Request::get(format!("http://test{path}")).body(()).unwrap(),
            b"",
            None,
        )
        .unwrap()
    }

    pub(crate) fn post(&self, path: &str, body: &[u8]) -> Http2Answer {
        self.ask(
            Request::post(format!("http://test{path}"))
                .body(())
                .unwrap(),
            body,
            None,
        )
        .unwrap()
    }

    /// A call of gRPC with one message.
    pub(crate) fn call(&self, path: &str, timeout: Option<&str>) -> Http2Answer {
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
        self.ask(request, &message(b"hello"), None).unwrap()
    }
}

/// Reads an answer to its end.
pub(crate) async fn read(response: Response<RecvStream>) -> Result<Http2Answer, h2::Error> {
    let (head, mut body) = response.into_parts();
    let mut all = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        _ = body.flow_control().release_capacity(piece.len());
        all.extend_from_slice(&piece);
    }
    Ok(Http2Answer {
        status: head.status.as_u16(),
        head: head.headers,
        body: all.into(),
        trailers: body.trailers().await?,
    })
}

/// A message of gRPC in its frame.
pub(crate) fn message(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[0], &length[..], bytes].concat()
}

/// Trailers that say how a call ended.
pub(crate) fn ended(status: &str) -> HeaderMap {
    HeaderMap::from_iter([("grpc-status".parse().unwrap(), status.parse().unwrap())])
}
