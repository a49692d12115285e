//! Three instances of a service that are replaced one after the other, under load from clients of
//! every protocol. Half of the clients send through a sidecar. The others connect to the endpoints
//! that the platform publishes, with a delay.

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

use outrigger::{resilience::lifecycle::Stage, state::instance::lifecycle::ExitReason};

use super::{
    Client, ScriptedBackend, Sidecar, TempDirectory,
    backend::{BackendConnection, ok_response},
    eventually,
    http2::{
        Http2Backend, Http2Client, grpc_message, grpc_status_trailers, read_body_and_trailers,
    },
    policy::PolicyBuilder,
    simulate_delay,
};

/// Returns the fields of the route of the gRPC payments from a listener.
fn grpc_route_fields(listener: &str) -> String {
    format!(
        "listeners: [{listener}], matches: [{{path: {{type: PathPrefix, value: /shop.Pay}}}}], \
         backendRefs: [{{name: grpc}}]"
    )
}

/// Durations of a rollout.
#[derive(Clone, Copy)]
pub(crate) struct FleetTimings {
    /// Field `drain` in the policy of the instances.
    pub(crate) drain_section: &'static str,
    /// Time after which the platform removes a draining instance from the endpoints.
    pub(crate) endpoint_update_delay: Duration,
}

/// Number of executions of each payment, by its id.
type PaymentCounts = Arc<Mutex<HashMap<String, u32>>>;

/// Instances of a service, and a sidecar of their clients.
pub(crate) struct Fleet {
    timings: FleetTimings,
    payment_counts: PaymentCounts,
    instances: Vec<Instance>,
    /// Endpoints that the platform publishes.
    published_endpoints: Arc<Mutex<Vec<SocketAddr>>>,
    endpoints_directory: TempDirectory,
    pub(crate) client_sidecar: Sidecar,
}

struct Instance {
    sidecar: Sidecar,
    _http_backend: ScriptedBackend,
    _grpc_backend: Http2Backend,
}

impl Instance {
    fn start(timings: FleetTimings, payment_counts: &PaymentCounts) -> Self {
        let (http_payments, grpc_payments) = (payment_counts.clone(), payment_counts.clone());
        let http_backend = ScriptedBackend::start(move |connection| {
            serve_app_connection(connection, &http_payments)
        });
        let grpc_backend = Http2Backend::start(move |mut call| {
            let payment_counts = grpc_payments.clone();
            async move {
                let (body, _) = read_body_and_trailers(&mut call.body).await;
                record_payment(&payment_counts, &body[5..]);
                let head = http::Response::builder()
                    .header("content-type", "application/grpc")
                    .body(())
                    .unwrap();
                // A client that disconnected receives no response.
                let Ok(mut stream) = call.responder.send_response(head, false) else {
                    return;
                };
                _ = stream.send_data(grpc_message(b"done").into(), false);
                _ = stream.send_trailers(grpc_status_trailers("0"));
            }
        });
        let grpc_fields = format!("protocol: GRPC, endpoints: [\"{}\"]", grpc_backend.address);
        let lifecycle = format!("  lifecycle: {{drain: {}}}\n", timings.drain_section);
        let policy = PolicyBuilder::to_backend(&http_backend)
            .backend("grpc", &grpc_fields)
            .route("grpc", &grpc_route_fields("inbound"))
            .sections(&lifecycle);
        let sidecar = Sidecar::start(&policy.build());
        eventually("the instance is ready", || {
            sidecar.call_admin("GET", "/readyz").status == 200
        });
        Self {
            sidecar,
            _http_backend: http_backend,
            _grpc_backend: grpc_backend,
        }
    }

    fn address(&self) -> SocketAddr {
        self.sidecar.address("inbound")
    }
}

fn record_payment(payment_counts: &PaymentCounts, id: &[u8]) {
    *payment_counts
        .lock()
        .unwrap()
        .entry(String::from_utf8_lossy(id).into_owned())
        .or_default() += 1;
}

/// Serves payments, and a WebSocket chat that echoes its frames.
fn serve_app_connection(mut connection: BackendConnection, payment_counts: &PaymentCounts) {
    while let Some(request) = connection.read_request() {
        if request.header("upgrade").is_some() {
            connection.send(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                 upgrade: websocket\r\n\r\n",
            );
            return echo_websocket_frames(&mut connection);
        }
        record_payment(payment_counts, &request.body);
        connection.send(ok_response("done"));
    }
}

fn echo_websocket_frames(connection: &mut BackendConnection) {
    while let Some(head) = connection.read_exact(6) {
        let Some(payload) = connection.read_exact(usize::from(head[1] & 0x7f)) else {
            return;
        };
        connection.send([&[head[0], head[1] & 0x7f], &payload[..]].concat());
        if head[0] == 0x88 {
            return;
        }
    }
}

impl Fleet {
    /// Starts three instances, and a sidecar that discovers them.
    pub(crate) fn start(timings: FleetTimings) -> Self {
        let payment_counts = PaymentCounts::default();
        let instances: Vec<Instance> = (0..3)
            .map(|_| Instance::start(timings, &payment_counts))
            .collect();
        let published_endpoints: Arc<Mutex<Vec<SocketAddr>>> = Arc::new(Mutex::new(
            instances.iter().map(Instance::address).collect(),
        ));
        let endpoints_directory = TempDirectory::new();
        publish_endpoints(&endpoints_directory, &published_endpoints);
        let endpoints_field = format!(
            "endpointsFile: \"{}\"",
            endpoints_directory.path().join("endpoints.json").display()
        );
        let policy = PolicyBuilder::new(&[])
            .outbound()
            .backend_fields(&endpoints_field)
            .backend("grpc", &format!("protocol: GRPC, {endpoints_field}"))
            .route("grpc", &grpc_route_fields("outbound"));
        let client_sidecar = Sidecar::start(&policy.build());
        eventually("the sidecar of the clients is ready", || {
            client_sidecar.call_admin("GET", "/readyz").status == 200
        });
        Self {
            timings,
            payment_counts,
            instances,
            published_endpoints,
            endpoints_directory,
            client_sidecar,
        }
    }

    /// Replaces each instance by a new one, as a rollout does.
    pub(crate) fn replace_all_instances(&mut self) {
        for index in 0..self.instances.len() {
            let new = Instance::start(self.timings, &self.payment_counts);
            self.published_endpoints.lock().unwrap().push(new.address());
            publish_endpoints(&self.endpoints_directory, &self.published_endpoints);
            let mut old = std::mem::replace(&mut self.instances[index], new);
            let address = old.address();
            // A pod drains in its preStop hook, or on the signal alone.
            let has_hook = index % 2 == 0;
            let mut stages = old.sidecar.app().state().drain.subscribe_stages();
            if has_hook {
                assert_eq!(old.sidecar.call_admin("POST", "/api/v1/drain").status, 202);
            } else {
                old.sidecar.app().drain();
            }
            simulate_delay(self.timings.endpoint_update_delay);
            self.published_endpoints
                .lock()
                .unwrap()
                .retain(|other| *other != address);
            publish_endpoints(&self.endpoints_directory, &self.published_endpoints);
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
                ExitReason::Drained { is_clean: true },
                "an instance interrupted a request"
            );
        }
    }

    /// Starts clients of every kind, `clients_per_kind` of each with and without a sidecar.
    pub(crate) fn start_load(&self, clients_per_kind: usize) -> FleetLoad {
        let load = Arc::new(LoadContext {
            payment_counts: self.payment_counts.clone(),
            published_endpoints: self.published_endpoints.clone(),
            client_sidecar_address: self.client_sidecar.address("outbound"),
            is_stopped: AtomicBool::new(false),
            next_payment_number: AtomicUsize::new(0),
        });
        let kinds: [fn(&LoadContext, bool) -> ClientReport; 4] = [
            send_http1_payments,
            send_http2_payments,
            send_grpc_payments,
            run_websocket_chats,
        ];
        let clients = (0..clients_per_kind)
            .flat_map(|_| kinds)
            .flat_map(|kind| [(kind, true), (kind, false)]);
        let threads = clients.map(|(kind, is_through_sidecar)| {
            let load = load.clone();
            thread::spawn(move || kind(&load, is_through_sidecar))
        });
        let threads = threads.collect();
        FleetLoad {
            context: load,
            threads,
            started_at: Instant::now(),
        }
    }
}

fn publish_endpoints(
    endpoints_directory: &TempDirectory,
    published_endpoints: &Mutex<Vec<SocketAddr>>,
) {
    let addresses: Vec<String> = published_endpoints
        .lock()
        .unwrap()
        .iter()
        .map(|address| format!("\"{address}\""))
        .collect();
    endpoints_directory.write("endpoints.json", &format!("[{}]", addresses.join(", ")));
}

/// State that the clients share.
struct LoadContext {
    payment_counts: PaymentCounts,
    published_endpoints: Arc<Mutex<Vec<SocketAddr>>>,
    client_sidecar_address: SocketAddr,
    is_stopped: AtomicBool,
    next_payment_number: AtomicUsize,
}

/// Result of a client: the number of successful requests, and a description of each failure.
#[derive(Debug, Default)]
pub(crate) struct ClientReport {
    pub(crate) served: usize,
    pub(crate) failures: Vec<String>,
}

/// Clients that send requests until they are stopped.
pub(crate) struct FleetLoad {
    context: Arc<LoadContext>,
    threads: Vec<JoinHandle<ClientReport>>,
    started_at: Instant,
}

impl FleetLoad {
    /// Stops the clients, and asserts that no request failed and no payment was executed twice.
    /// Returns the number of requests, and the rate per second.
    pub(crate) fn stop_and_verify(self) -> (usize, f64) {
        self.context.is_stopped.store(true, Ordering::Relaxed);
        let report: Vec<ClientReport> = self
            .threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        let elapsed = self.started_at.elapsed();
        let failures: Vec<&String> = report.iter().flat_map(|report| &report.failures).collect();
        assert!(
            failures.is_empty(),
            "{} failed: {:?}",
            failures.len(),
            &failures[..failures.len().min(10)]
        );
        let payment_counts = self.context.payment_counts.lock().unwrap();
        let miscounted: Vec<_> = payment_counts
            .iter()
            .filter(|(_, count)| **count != 1)
            .collect();
        assert!(
            miscounted.is_empty(),
            "not executed exactly once: {miscounted:?}"
        );
        assert!(
            report.iter().all(|report| report.served > 0),
            "a client received no response: {report:?}"
        );
        let served = report.iter().map(|report| report.served).sum();
        (served, served as f64 / elapsed.as_secs_f64())
    }
}

impl LoadContext {
    fn is_running(&self) -> bool {
        !self.is_stopped.load(Ordering::Relaxed)
    }

    /// Returns the address of the clients' sidecar, or of a random published instance.
    fn connect_address(&self, is_through_sidecar: bool) -> SocketAddr {
        let published_endpoints = self.published_endpoints.lock().unwrap();
        if is_through_sidecar {
            self.client_sidecar_address
        } else {
            published_endpoints[fastrand::usize(..published_endpoints.len())]
        }
    }

    fn next_payment_id(&self) -> String {
        format!(
            "payment {}",
            self.next_payment_number.fetch_add(1, Ordering::Relaxed)
        )
    }
}

/// Sends payments over HTTP/1 until the load ends, on one connection as long as it stays open.
fn send_http1_payments(context: &LoadContext, is_through_sidecar: bool) -> ClientReport {
    let mut report = ClientReport::default();
    let mut reusable_client: Option<Client> = None;
    while context.is_running() {
        let mut client = reusable_client
            .take()
            .unwrap_or_else(|| Client::connect(context.connect_address(is_through_sidecar)));
        let id = context.next_payment_id();
        client.try_send(format!(
            "POST /pay HTTP/1.1\r\nhost: shop\r\ncontent-length: {}\r\n\r\n{id}",
            id.len()
        ));
        match client.try_read_response() {
            Some(response) if response.status == 200 && response.is_complete => {
                report.served += 1;
                reusable_client =
                    Some(client).filter(|_| response.header("connection") != Some("close"));
            }
            Some(response) => report.failures.push(format!(
                "http1, sidecar {is_through_sidecar}: {} {}",
                response.status,
                response.reason()
            )),
            None => report.failures.push(format!(
                "http1, sidecar {is_through_sidecar}: no response to {id}"
            )),
        }
    }
    report
}

/// Sends payments over HTTP/2 until the load ends.
fn send_http2_payments(context: &LoadContext, is_through_sidecar: bool) -> ClientReport {
    send_payments_over_http2(context, is_through_sidecar, "/pay", |id| id.to_vec())
}

/// Sends payments as gRPC calls until the load ends.
fn send_grpc_payments(context: &LoadContext, is_through_sidecar: bool) -> ClientReport {
    send_payments_over_http2(context, is_through_sidecar, "/shop.Pay/Pay", grpc_message)
}

fn send_payments_over_http2(
    context: &LoadContext,
    is_through_sidecar: bool,
    path: &str,
    body: fn(&[u8]) -> Vec<u8>,
) -> ClientReport {
    let is_grpc = path != "/pay";
    let mut report = ClientReport::default();
    let mut reusable_client: Option<Http2Client> = None;
    let mut id = context.next_payment_id();
    while context.is_running() {
        let client = reusable_client.get_or_insert_with(|| {
            Http2Client::connect(context.connect_address(is_through_sidecar))
        });
        let mut request = http::Request::post(format!("http://shop{path}"));
        if is_grpc {
            request = request
                .header("content-type", "application/grpc")
                .header("te", "trailers");
        }
        match client.send_request(request.body(()).unwrap(), &body(id.as_bytes()), None) {
            Ok(response)
                if response.status == 200 && (!is_grpc || response.grpc_status() == Some("0")) =>
            {
                report.served += 1
            }
            Ok(response) => report.failures.push(format!(
                "http2, sidecar {is_through_sidecar}: {} {:?} {}",
                response.status,
                response.grpc_status(),
                response.header("x-outrigger-reason")
            )),
            // The backend did not process this request. Every client sends it again on another
            // connection (RFC 9113 section 6.8).
            Err(error) if error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR) => {
                reusable_client = None;
                continue;
            }
            Err(error) => {
                report
                    .failures
                    .push(format!("http2, sidecar {is_through_sidecar}: {error}"));
                reusable_client = None;
            }
        }
        id = context.next_payment_id();
    }
    report
}

/// Runs WebSocket chats until the load ends, each until its instance closes it with 1001.
fn run_websocket_chats(context: &LoadContext, is_through_sidecar: bool) -> ClientReport {
    let mut report = ClientReport::default();
    while context.is_running() {
        let mut client = Client::connect(context.connect_address(is_through_sidecar));
        client.try_send(
            "GET /chat HTTP/1.1\r\nhost: shop\r\nconnection: upgrade\r\n\
             upgrade: websocket\r\nsec-websocket-key: x\r\n\r\n",
        );
        match client.read_head() {
            Some((101, _)) => {}
            other => {
                report
                    .failures
                    .push(format!("chat, sidecar {is_through_sidecar}: {other:?}"));
                continue;
            }
        }
        while context.is_running() {
            client.try_send(b"\x81\x84\0\0\0\0ping");
            match &client.read_raw(4)[..] {
                // A ping that is still in flight receives no response after the close frame.
                b"\x88\x02\x03\xe9" => {
                    client.try_send(b"\x88\x82\0\0\0\0\x03\xe9");
                    client.wait_for_close();
                    break;
                }
                b"\x81\x04pi" if client.read_raw(2) == b"ng" => report.served += 1,
                other => {
                    report
                        .failures
                        .push(format!("chat, sidecar {is_through_sidecar}: {other:?}"));
                    break;
                }
            }
        }
    }
    report
}
