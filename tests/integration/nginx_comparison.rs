//! The same requests through the sidecar and through nginx. Where the two differ, the table says
//! why. A difference that it does not explain fails the test.

mod variants;

use variants::VARIANTS;

use crate::support::{Client, ScriptedBackend, Sidecar, nginx::Nginx, policy::PolicyBuilder};

/// Request before it is written.
#[derive(Debug, Clone)]
struct RawRequest {
    method: &'static str,
    target: &'static str,
    version: &'static str,
    /// Lines of fields, without their ends.
    lines: Vec<&'static str>,
    body: &'static str,
    line_end: &'static str,
}

/// Edit of a request.
#[derive(Debug, Clone, Copy)]
enum Edit {
    Method(&'static str),
    Target(&'static str),
    Version(&'static str),
    /// Replaces the lines of all fields.
    Lines(&'static [&'static str]),
    /// Adds lines of fields.
    Add(&'static [&'static str]),
    LineEnd(&'static str),
    Body(&'static str),
    /// POST with these lines and this body.
    Post(&'static [&'static str], &'static str),
    /// POST whose body is in chunks.
    Chunked(&'static str),
}

/// What a proxy made of a request.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    /// Whether the client received a successful response.
    is_served: bool,
    /// Request line, fields of the test, and body of each request that the app received.
    app_saw: Vec<String>,
}

impl RawRequest {
    fn apply(&mut self, edits: &[Edit]) {
        for edit in edits {
            match *edit {
                Edit::Method(method) => self.method = method,
                Edit::Target(target) => self.target = target,
                Edit::Version(version) => self.version = version,
                Edit::Lines(lines) => self.lines = lines.to_vec(),
                Edit::Add(lines) => self.lines.extend(lines),
                Edit::LineEnd(line_end) => self.line_end = line_end,
                Edit::Body(body) => self.body = body,
                Edit::Post(lines, body) => {
                    self.apply(&[Edit::Method("POST"), Edit::Add(lines), Edit::Body(body)]);
                }
                Edit::Chunked(body) => {
                    self.apply(&[Edit::Post(&["Transfer-Encoding: chunked"], body)]);
                }
            }
        }
    }

    fn base() -> Self {
        Self {
            method: "GET",
            target: "/a?b=c",
            version: "HTTP/1.1",
            lines: vec!["Host: shop"],
            body: "",
            line_end: "\r\n",
        }
    }

    fn to_bytes(&self) -> String {
        let end = self.line_end;
        let lines: Vec<String> = self
            .lines
            .iter()
            .map(|line| format!("{line}{end}"))
            .collect();
        let start = format!("{} {} {}{end}", self.method, self.target, self.version);
        format!("{start}{}{end}{}", lines.concat(), self.body)
    }
}

/// Sends a request to a proxy, and returns what became of it.
fn outcome(app: &ScriptedBackend, address: std::net::SocketAddr, request: &str) -> Outcome {
    let before = app.requests().len();
    let mut client = Client::connect(address);
    let response = client
        .try_send(request)
        .then(|| client.try_read_response())
        .flatten();
    if request.contains("/second") {
        // The app has received it once its response arrives, if the connection still carries one.
        _ = client.try_read_response();
    }
    let requests = app.requests();
    let app_saw = requests[before..].iter().map(|seen| {
        let fields = seen.head.lines().skip(1);
        let fields: Vec<&str> = fields
            .filter(|line| {
                let name = line
                    .split(':')
                    .next()
                    .unwrap_or_default()
                    .to_ascii_lowercase();
                name == "host" || name.contains("test") || name == "te"
            })
            .collect();
        let body = String::from_utf8_lossy(&seen.body);
        format!("{} | {} | {body}", seen.request_line(), fields.join(" | "))
    });
    Outcome {
        is_served: response.is_some_and(|response| response.status == 200),
        app_saw: app_saw.collect(),
    }
}

#[test]
fn requests_are_treated_as_by_nginx_except_for_the_listed_differences() {
    let apps = (ScriptedBackend::healthy(), ScriptedBackend::healthy());
    let Some(nginx) = Nginx::start(apps.1.address) else {
        return;
    };
    let limits = "limits: {headerTimeout: 1s}";
    let policy = PolicyBuilder::to_backend(&apps.0).listener_fields(limits);
    let sidecar = Sidecar::start(&policy.build());
    let address = sidecar.address("inbound");
    let compare = |request: &RawRequest| {
        let bytes = request.to_bytes();
        let ours = outcome(&apps.0, address, &bytes);
        (ours, outcome(&apps.1, nginx.address, &bytes))
    };
    let mut wrong = Vec::new();
    for (index, variant) in VARIANTS.iter().enumerate() {
        let mut request = RawRequest::base();
        request.apply(variant.edits);
        let variant_has_body = !request.body.is_empty();
        let (ours, theirs) = compare(&request);
        if (ours == theirs) != variant.difference.is_none() {
            wrong.push(format!(
                "{}:\n  ours {ours:?}\n  nginx {theirs:?}",
                variant.text
            ));
        }
        // Together with some of the others, so that a variant of the one kind meets one of the
        // other. A pair may differ only if one of them does.
        for step in [1, 7, 23, 41] {
            let other = &VARIANTS[(index + step) % VARIANTS.len()];
            let mut request = RawRequest::base();
            request.apply(other.edits);
            let has_body = !request.body.is_empty();
            request.apply(variant.edits);
            if has_body && variant_has_body {
                // The fields of one announce the body of the other, which may be incomplete.
                continue;
            }
            let (ours, theirs) = compare(&request);
            let may_differ = variant.difference.is_some() || other.difference.is_some();
            if ours != theirs && !may_differ {
                let names = format!("{} and {}", variant.text, other.text);
                wrong.push(format!("{names}:\n  ours {ours:?}\n  nginx {theirs:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
