//! Any well-formed message of HTTP/1 arrives unchanged, however its bytes arrive, except for what
//! this hop must change.

use std::sync::{Arc, LazyLock, Mutex};

use proptest::prelude::*;

use crate::support::{ScriptedBackend, Sidecar, policy::PolicyBuilder};

/// Body of a message, with its framing.
#[derive(Debug, Clone)]
enum Body {
    None,
    Length(Vec<u8>),
    Chunked(Vec<Vec<u8>>),
}

/// Message without its start line.
#[derive(Debug, Clone)]
struct Message {
    fields: Vec<(String, String)>,
    body: Body,
    /// Lengths of the pieces in which the message is sent. The last piece is the rest.
    piece_lengths: Vec<usize>,
}

impl Message {
    fn content(&self) -> Vec<u8> {
        match &self.body {
            Body::None => Vec::new(),
            Body::Length(bytes) => bytes.clone(),
            Body::Chunked(chunks) => chunks.concat(),
        }
    }

    /// Serializes the message, and splits it into its pieces.
    fn to_pieces(&self, start_line: &str) -> Vec<Vec<u8>> {
        let mut bytes = format!("{start_line}\r\n").into_bytes();
        for (name, value) in &self.fields {
            bytes.extend(format!("{name}: {value}\r\n").into_bytes());
        }
        match &self.body {
            Body::None => bytes.extend(b"content-length: 0\r\n\r\n"),
            Body::Length(body) => {
                bytes.extend(format!("content-length: {}\r\n\r\n", body.len()).into_bytes());
                bytes.extend(body);
            }
            Body::Chunked(chunks) => {
                bytes.extend(b"transfer-encoding: chunked\r\n\r\n");
                for chunk in chunks {
                    bytes.extend(format!("{:X}\r\n", chunk.len()).into_bytes());
                    bytes.extend(chunk);
                    bytes.extend(b"\r\n");
                }
                bytes.extend(b"0\r\n\r\n");
            }
        }
        let mut pieces = Vec::new();
        for length in &self.piece_lengths {
            let rest = bytes.split_off(bytes.len().min(*length));
            pieces.push(std::mem::replace(&mut bytes, rest));
        }
        pieces.push(bytes);
        pieces
    }

    /// Returns the values of the fields with a name, in order.
    fn values(&self, name: &str) -> Vec<&str> {
        let fields = self.fields.iter();
        fields
            .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
            .collect()
    }
}

fn message() -> impl Strategy<Value = Message> {
    let name = "(x-[a-c]|X-Upper|accept|etag|vary|x-[!#$%&'*+.^_`|~]{1,3})";
    let value = "([!-~]([ -~]{0,12}[!-~])?)?";
    let body = prop_oneof![
        Just(Body::None),
        prop::collection::vec(any::<u8>(), 0..3_000).prop_map(Body::Length),
        prop::collection::vec(prop::collection::vec(any::<u8>(), 1..900), 0..5)
            .prop_map(Body::Chunked),
    ];
    (
        prop::collection::vec((name, value), 0..12),
        body,
        prop::collection::vec(1_usize..600, 0..8),
    )
        .prop_map(|(fields, body, piece_lengths)| Message {
            fields,
            body,
            piece_lengths,
        })
}

/// Pieces of the response that the app sends next.
type NextResponse = Arc<Mutex<Vec<Vec<u8>>>>;

static PROXY: LazyLock<(ScriptedBackend, Sidecar, NextResponse)> = LazyLock::new(|| {
    let next = NextResponse::default();
    let scripted = next.clone();
    let app = ScriptedBackend::start(move |mut connection| {
        while connection.read_request().is_some() {
            for piece in &*scripted.lock().unwrap() {
                connection.send(piece);
            }
        }
    });
    let sidecar = Sidecar::start(&PolicyBuilder::to_backend(&app).build());
    (app, sidecar, next)
});

/// Returns the values of the fields with a name in a head, in order.
fn values_in<'h>(head: &'h str, name: &str) -> Vec<&'h str> {
    let fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    fields
        .filter(|(field, _)| field.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_message_arrives_unchanged_however_it_is_split(
        method in "(POST|PUT|PATCH|M-SEARCH)",
        path in "(/[a-z0-9%!$&'()*+,;=:@._~-]{0,9}){1,4}(\\?[a-z=&/?]{0,9})?",
        status in prop_oneof![Just(200_u16), Just(201), Just(404), Just(422)],
        request in message(),
        response in message(),
    ) {
        // A percent sign starts an escape of two digits.
        let path = path.replace('%', "%2F");
        let (app, sidecar, next) = &*PROXY;
        *next.lock().unwrap() = response.to_pieces(&format!("HTTP/1.1 {status} Reason"));
        let mut client = sidecar.client();
        for piece in request.to_pieces(&format!("{method} {path} HTTP/1.1\r\nhost: test")) {
            client.send(piece);
        }
        let received = client.read_response();
        let forwarded = app.requests().pop().unwrap();
        prop_assert_eq!(forwarded.request_line(), format!("{method} {path} HTTP/1.1"));
        prop_assert_eq!(&forwarded.body, &request.content());
        for (name, _) in &request.fields {
            prop_assert_eq!(values_in(&forwarded.head, name), request.values(name), "{}", name);
        }
        prop_assert!(received.is_complete);
        prop_assert_eq!((received.status, &received.body), (status, &response.content()));
        for (name, _) in &response.fields {
            prop_assert_eq!(values_in(&received.head, name), response.values(name), "{}", name);
        }
    }
}
