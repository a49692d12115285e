//! Three instances of a service that are replaced one after the other, and callers of every kind that ask all the time: through a
//! sidecar of their own, or by themselves with what the platform tells them, a while late.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use outrigger::{resilience::lifecycle::Stage, state::lifecycle::End};

use super::{
    Backend, Client, Directory, Sidecar,
    backend::{Connection, ok},
    eventually,
    http2::{Http2Backend, Http2Client, collect, ended, message},
    take,
};

/// How long things take.
#[derive(Clone, Copy)]
pub(crate) struct Clocks {
    /// The section `drain` of the instances.
    pub(crate) drain: &'static str,
    /// After which time the platform stops sending to an instance that is leaving.
    pub(crate) lag: Duration,
}

/// How often each payment was made.
type Paid = Arc<Mutex<HashMap<String, u32>>>;

/// The instances, and the sidecar of who calls them.
pub(crate) struct Fleet {
    clocks: Clocks,
    paid: Paid,
    instances: Vec<Instance>,
    /// Where the platform says that the instances are.
    book: Arc<Mutex<Vec<SocketAddr>>>,
    files: Directory,
    pub(crate) caller: Sidecar,
}

struct Instance {
    sidecar: Sidecar,
    _web: Backend,
    _calls: Http2Backend,
}

impl Instance {
    fn start(clocks: Clocks, paid: &Paid) -> Self {
        let (there, of_calls) = (paid.clone(), paid.clone());
        let web = Backend::start(move |connection| serve(connection, &there));
        let calls = Http2Backend::start(move |mut call| {
            let paid = of_calls.clone();
            async move {
                let (body, _) = collect(&mut call.body).await;
                pay(&paid, &body[5..]);
                let head = http::Response::builder()
                    .header("content-type", "application/grpc")
                    .body(())
                    .unwrap();
                // Who has left needs no answer.
                let Ok(mut stream) = call.respond.send_response(head, false) else {
                    return;
                };
                _ = stream.send_data(message(b"done").into(), false);
                _ = stream.send_trailers(ended("0"));
            }
        });
        let sidecar = Sidecar::start(&format!(
            "apiVersion: outrigger.dev/v1alpha1\nkind: ResiliencePolicy\nmetadata: {{name: instance}}\nspec:\n  listeners:\n    - {{name: inbound, direction: Inbound, address: \"127.0.0.1:0\"}}\n  \
             backends:\n    - {{name: web, endpoints: [\"{}\"]}}\n    - {{name: calls, protocol: GRPC, endpoints: [\"{}\"]}}\n{}  lifecycle: {{drain: {}}}\n",
            web.address,
            calls.address,
            routes("inbound"),
            clocks.drain,
        ));
        eventually("the instance is ready", || {
            sidecar.admin("GET", "/readyz").status == 200
        });
        Self {
            sidecar,
            _web: web,
            _calls: calls,
        }
    }

    fn address(&self) -> SocketAddr {
        self.sidecar.address("inbound")
    }
}

fn routes(listener: &str) -> String {
    format!(
        "  routes:\n    - {{name: calls, listeners: [{listener}], matches: [{{path: {{type: PathPrefix, value: /shop.Pay}}}}], backendRefs: [{{name: calls}}]}}\n    \
         - {{name: web, listeners: [{listener}], backendRefs: [{{name: web}}]}}\n"
    )
}

fn pay(paid: &Paid, id: &[u8]) {
    *paid
        .lock()
        .unwrap()
        .entry(String::from_utf8_lossy(id).into_owned())
        .or_default() += 1;
}

/// The app: payments, and a chat that says everything back.
fn serve(mut connection: Connection, paid: &Paid) {
    while let Some(request) = connection.request() {
        if request.header("upgrade").is_some() {
            connection.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
            return chat(&mut connection);
        }
        pay(paid, &request.body);
        connection.send(ok("done"));
    }
}

fn chat(connection: &mut Connection) {
    while let Some(head) = connection.exactly(6) {
        let Some(said) = connection.exactly(usize::from(head[1] & 0x7f)) else {
            return;
        };
        connection.send([&[head[0], head[1] & 0x7f], &said[..]].concat());
        if head[0] == 0x88 {
            return;
        }
    }
}

impl Fleet {
    /// Three instances, and a caller that knows them.
    pub(crate) fn start(clocks: Clocks) -> Self {
        let paid = Paid::default();
        let instances: Vec<Instance> = (0..3).map(|_| Instance::start(clocks, &paid)).collect();
        let book: Arc<Mutex<Vec<SocketAddr>>> = Arc::new(Mutex::new(
            instances.iter().map(Instance::address).collect(),
        ));
        let files = Directory::new();
        publish(&files, &book);
        let found = format!(
            "endpointsFile: \"{}\"",
            files.path().join("endpoints.json").display()
        );
        let caller = Sidecar::start(&format!(
            "apiVersion: outrigger.dev/v1alpha1\nkind: ResiliencePolicy\nmetadata: {{name: caller}}\nspec:\n  listeners:\n    - {{name: outbound, direction: Outbound, address: \"127.0.0.1:0\"}}\n  \
             backends:\n    - {{name: web, {found}}}\n    - {{name: calls, protocol: GRPC, {found}}}\n{}",
            routes("outbound"),
        ));
        eventually("the caller is ready", || {
            caller.admin("GET", "/readyz").status == 200
        });
        Self {
            clocks,
            paid,
            instances,
            book,
            files,
            caller,
        }
    }

    /// Replaces each instance by a new one.
    pub(crate) fn roll(&mut self) {
        for index in 0..self.instances.len() {
            let new = Instance::start(self.clocks, &self.paid);
            self.book.lock().unwrap().push(new.address());
            publish(&self.files, &self.book);
            let mut old = std::mem::replace(&mut self.instances[index], new);
            let address = old.address();
            // As a pod does, with a hook before the signal; or by the signal alone.
            let has_hook = index % 2 == 0;
            let mut stages = old.sidecar.app().state().departure.stages();
            if has_hook {
                assert_eq!(old.sidecar.admin("POST", "/api/v1/drain").status, 202);
            } else {
                old.sidecar.app().drain();
            }
            take(self.clocks.lag);
            self.book.lock().unwrap().retain(|other| *other != address);
            publish(&self.files, &self.book);
            if has_hook {
                let drained = tokio::runtime::Builder::new_current_thread()
                    .build()
                    .unwrap()
                    .block_on(async {
                        stages
                            .wait_for(|stage| *stage >= Stage::Drained)
                            .await
                            .is_ok()
                    });
                assert!(drained);
                old.sidecar.app().drain();
            }
            let app = old.sidecar.app.take().unwrap();
            assert_eq!(
                app.wait(),
                End::Drained { is_clean: true },
                "an instance was cut off"
            );
        }
    }

    /// Callers of every kind, so many of each.
    pub(crate) fn load(&self, each: usize) -> Load {
        let load = Arc::new(Shared {
            paid: self.paid.clone(),
            book: self.book.clone(),
            caller: self.caller.address("outbound"),
            is_over: AtomicBool::new(false),
            ids: AtomicUsize::new(0),
        });
        let kinds: [fn(&Shared, bool) -> Told; 4] = [payments, streams, calls, chats];
        let callers = (0..each)
            .flat_map(|_| kinds)
            .flat_map(|kind| [(kind, true), (kind, false)]);
        let threads = callers.map(|(kind, is_through_sidecar)| {
            let load = load.clone();
            thread::spawn(move || kind(&load, is_through_sidecar))
        });
        let threads = threads.collect();
        Load {
            shared: load,
            threads,
            began: Instant::now(),
        }
    }
}

fn publish(files: &Directory, book: &Mutex<Vec<SocketAddr>>) {
    let addresses: Vec<String> = book
        .lock()
        .unwrap()
        .iter()
        .map(|address| format!("\"{address}\""))
        .collect();
    files.write("endpoints.json", &format!("[{}]", addresses.join(", ")));
}

/// What the callers share.
struct Shared {
    paid: Paid,
    book: Arc<Mutex<Vec<SocketAddr>>>,
    caller: SocketAddr,
    is_over: AtomicBool,
    ids: AtomicUsize,
}

/// What a caller has to tell: how often it was served, and every way in which it was not.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) served: usize,
    pub(crate) failures: Vec<String>,
}

/// Callers, until they are told to stop.
pub(crate) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Told>>,
    began: Instant,
}

impl Load {
    /// Stops them, and sees to it that nothing failed and nothing was paid twice; how much was asked, and in a second.
    pub(crate) fn end(self) -> (usize, f64) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        let told: Vec<Told> = self
            .threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        let took = self.began.elapsed();
        let failures: Vec<&String> = told.iter().flat_map(|told| &told.failures).collect();
        assert!(
            failures.is_empty(),
            "{} failed: {:?}",
            failures.len(),
            &failures[..failures.len().min(10)]
        );
        let paid = self.shared.paid.lock().unwrap();
        let twice: Vec<_> = paid.iter().filter(|(_, count)| **count != 1).collect();
        assert!(twice.is_empty(), "paid twice: {twice:?}");
        assert!(
            told.iter().all(|told| told.served > 0),
            "a caller was never served: {told:?}"
        );
        let served = told.iter().map(|told| told.served).sum();
        (served, served as f64 / took.as_secs_f64())
    }
}

impl Shared {
    fn goes_on(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed)
    }

    /// Where to connect: to the caller's sidecar, or to any instance that the platform knows of.
    fn place(&self, is_through_sidecar: bool) -> SocketAddr {
        let book = self.book.lock().unwrap();
        if is_through_sidecar {
            self.caller
        } else {
            book[fastrand::usize(..book.len())]
        }
    }

    fn id(&self) -> String {
        format!("payment {}", self.ids.fetch_add(1, Ordering::Relaxed))
    }
}

/// Payments over HTTP/1, on one connection as long as it lasts.
fn payments(shared: &Shared, is_through_sidecar: bool) -> Told {
    let mut told = Told::default();
    let mut open: Option<Client> = None;
    while shared.goes_on() {
        let mut client = open
            .take()
            .unwrap_or_else(|| Client::connect(shared.place(is_through_sidecar)));
        let id = shared.id();
        client.try_send(format!(
            "POST /pay HTTP/1.1\r\nhost: shop\r\ncontent-length: {}\r\n\r\n{id}",
            id.len()
        ));
        match client.try_answer() {
            Some(answer) if answer.status == 200 && answer.is_complete => {
                told.served += 1;
                open = Some(client).filter(|_| answer.header("connection") != Some("close"));
            }
            Some(answer) => told.failures.push(format!(
                "http1, sidecar {is_through_sidecar}: {} {}",
                answer.status,
                answer.reason()
            )),
            None => told.failures.push(format!(
                "http1, sidecar {is_through_sidecar}: no answer to {id}"
            )),
        }
    }
    told
}

/// Payments over HTTP/2.
fn streams(shared: &Shared, is_through_sidecar: bool) -> Told {
    over_http2(shared, is_through_sidecar, "/pay", |id| id.to_vec())
}

/// Payments by gRPC.
fn calls(shared: &Shared, is_through_sidecar: bool) -> Told {
    over_http2(shared, is_through_sidecar, "/shop.Pay/Pay", message)
}

fn over_http2(
    shared: &Shared,
    is_through_sidecar: bool,
    path: &str,
    body: fn(&[u8]) -> Vec<u8>,
) -> Told {
    let is_call = path != "/pay";
    let mut told = Told::default();
    let mut open: Option<Http2Client> = None;
    let mut id = shared.id();
    while shared.goes_on() {
        let client =
            open.get_or_insert_with(|| Http2Client::connect(shared.place(is_through_sidecar)));
        let mut request = http::Request::post(format!("http://shop{path}"));
        if is_call {
            request = request
                .header("content-type", "application/grpc")
                .header("te", "trailers");
        }
        match client.ask(request.body(()).unwrap(), &body(id.as_bytes()), None) {
            Ok(answer)
                if answer.status == 200 && (!is_call || answer.grpc_status() == Some("0")) =>
            {
                told.served += 1
            }
            Ok(answer) => told.failures.push(format!(
                "http2, sidecar {is_through_sidecar}: {} {:?} {}",
                answer.status,
                answer.grpc_status(),
                answer.header("x-outrigger-reason")
            )),
            // The connection takes no more, and has not taken this one: every client asks again on another (RFC 9113 section 6.8).
            Err(error) if error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR) => {
                open = None;
                continue;
            }
            Err(error) => {
                told.failures
                    .push(format!("http2, sidecar {is_through_sidecar}: {error}"));
                open = None;
            }
        }
        id = shared.id();
    }
    told
}

/// Chats, each until it is told that its instance goes away.
fn chats(shared: &Shared, is_through_sidecar: bool) -> Told {
    let mut told = Told::default();
    while shared.goes_on() {
        let mut client = Client::connect(shared.place(is_through_sidecar));
        client.try_send("GET /chat HTTP/1.1\r\nhost: shop\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n\r\n");
        match client.head() {
            Some((101, _)) => {}
            other => {
                told.failures
                    .push(format!("chat, sidecar {is_through_sidecar}: {other:?}"));
                continue;
            }
        }
        while shared.goes_on() {
            client.try_send(b"\x81\x84\0\0\0\0ping");
            match &client.raw(4)[..] {
                // One more word of ours may be on its way; it is not answered any more.
                b"\x88\x02\x03\xe9" => {
                    client.try_send(b"\x88\x82\0\0\0\0\x03\xe9");
                    client.is_closed();
                    break;
                }
                b"\x81\x04pi" if client.raw(2) == b"ng" => told.served += 1,
                other => {
                    told.failures
                        .push(format!("chat, sidecar {is_through_sidecar}: {other:?}"));
                    break;
                }
            }
        }
    }
    told
}
