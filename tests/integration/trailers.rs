//! Trailers of requests and responses, between both protocols in both directions.

use std::sync::{Arc, Mutex};

use http::{HeaderMap, Request};

use crate::support::{
    Client, ScriptedBackend, Sidecar,
    backend::BackendConnection,
    http2::{Http2Backend, Http2Client},
    policy::PolicyBuilder,
};

/// Trailers of which only the checksum may be forwarded (RFC 9110 section 6.5.1).
const SENT_TRAILERS: &str = "checksum: 1\r\ncontent-length: 3\r\nhost: other\r\n";

/// Head and body of each request, as bytes on the wire.
type WireRequests = Arc<Mutex<Vec<(String, String)>>>;

/// App that responds with a chunked body and trailers, and stores what follows each request head.
fn app_with_trailers() -> (ScriptedBackend, WireRequests) {
    let received = WireRequests::default();
    let stored = received.clone();
    let script = move |mut connection: BackendConnection| {
        while let Some(head) = connection.read_head() {
            let body = if head.contains("POST") {
                connection.read_head().unwrap_or_default()
            } else {
                String::new()
            };
            stored.lock().unwrap().push((head, body));
            connection.send(format!(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: checksum\r\n\r\n\
                 4\r\nbody\r\n0\r\n{SENT_TRAILERS}\r\n"
            ));
        }
    };
    (ScriptedBackend::start(script), received)
}

fn http2_policy(app: &Http2Backend) -> String {
    PolicyBuilder::new(&[app.address])
        .backend_fields("protocol: HTTP2")
        .build()
}

fn checksum_of(trailers: Option<&HeaderMap>) -> Vec<(&str, &str)> {
    let fields = trailers.into_iter().flatten();
    fields
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
        .collect()
}

#[test]
fn an_http1_client_receives_trailers_only_if_it_accepts_them() {
    let (app, _) = app_with_trailers();
    let sidecar = Sidecar::start(&PolicyBuilder::to_backend(&app).build());
    let mut client = sidecar.client();
    client.send("GET / HTTP/1.1\r\nhost: a\r\nTE: Trailers\r\nconnection: te\r\n\r\n");
    let (_, head) = client.read_head().unwrap();
    assert!(head.to_lowercase().contains("trailer: checksum"), "{head}");
    let expected = b"4\r\nbody\r\n0\r\nchecksum: 1\r\n\r\n";
    assert_eq!(client.read_raw(expected.len()), expected);
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    client.read_head().unwrap();
    let expected = b"4\r\nbody\r\n0\r\n\r\n";
    assert_eq!(client.read_raw(expected.len()), expected);
    assert_eq!(client.get("/").text(), "body", "the connection is reused");
}

#[test]
fn an_http2_client_receives_the_trailers_of_an_http1_app() {
    let (app, received) = app_with_trailers();
    let sidecar = Sidecar::start(&PolicyBuilder::to_backend(&app).build());
    let client = Http2Client::connect(sidecar.address("inbound"));
    let request = Request::get("http://test/").header("te", "trailers");
    let response = client.send_request(request.body(()).unwrap(), b"", None);
    let response = response.unwrap();
    assert_eq!(&response.body[..], b"body");
    assert_eq!(checksum_of(response.trailers.as_ref()), [("checksum", "1")]);
    let head = received.lock().unwrap()[0].0.to_lowercase();
    assert!(
        head.contains("\r\nte: trailers\r\n") && head.contains("\r\nconnection: te\r\n"),
        "{head}"
    );
}

#[test]
fn the_trailers_of_a_request_reach_an_http1_app() {
    let (app, received) = app_with_trailers();
    let sidecar = Sidecar::start(&PolicyBuilder::to_backend(&app).build());
    let mut client = sidecar.client();
    client.send(format!(
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n\
         4\r\nbody\r\n0\r\n{SENT_TRAILERS}\r\n"
    ));
    assert_eq!(client.read_response().text(), "body");
    let http2 = Http2Client::connect(sidecar.address("inbound"));
    let trailers = HeaderMap::from_iter([
        ("checksum".parse().unwrap(), "1".parse().unwrap()),
        ("host".parse().unwrap(), "other".parse().unwrap()),
    ]);
    let request = Request::post("http://test/").body(()).unwrap();
    let response = http2.send_request(request, b"body", Some(trailers));
    assert_eq!(&response.unwrap().body[..], b"body");
    for (_, body) in received.lock().unwrap().iter() {
        assert_eq!(body, "4\r\nbody\r\n0\r\nchecksum: 1");
    }
    assert_eq!(received.lock().unwrap().len(), 2);
}

#[test]
fn the_trailers_of_an_http1_client_reach_an_http2_app_and_return() {
    let app = Http2Backend::echoing();
    let sidecar = Sidecar::start(&http2_policy(&app));
    let mut client = Client::connect(sidecar.address("inbound"));
    client.send(format!(
        "POST / HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: te\r\n\
         transfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n{SENT_TRAILERS}\r\n"
    ));
    client.read_head().unwrap();
    let expected = b"4\r\nbody\r\n0\r\nchecksum: 1\r\n\r\n";
    assert_eq!(client.read_raw(expected.len()), expected);
}
