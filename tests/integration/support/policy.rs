//! Policy files of the tests.

use std::{fmt::Display, net::SocketAddr};

use super::ScriptedBackend;

/// Policy file with a listener `inbound`, a backend `app`, and a route `in` from one to the other.
///
/// A test states what differs. Fields and items are YAML in flow style, without outer braces.
#[derive(Clone)]
pub(crate) struct PolicyBuilder {
    listener: Vec<String>,
    listener_address: String,
    direction: &'static str,
    endpoints: Vec<String>,
    backend: Vec<String>,
    route: Vec<String>,
    listeners: Vec<String>,
    backends: Vec<String>,
    routes: Vec<String>,
    route_listeners: Vec<String>,
    sections: String,
}

impl PolicyBuilder {
    /// Creates a policy whose backend `app` has these endpoints. If there are none, the backend
    /// has no `endpoints` field, so that the test can add another kind of discovery.
    pub(crate) fn new(endpoints: &[SocketAddr]) -> Self {
        Self {
            listener: Vec::new(),
            listener_address: "127.0.0.1:0".to_owned(),
            direction: "Inbound",
            endpoints: endpoints.iter().map(ToString::to_string).collect(),
            backend: Vec::new(),
            route: Vec::new(),
            listeners: Vec::new(),
            backends: Vec::new(),
            routes: Vec::new(),
            route_listeners: vec!["inbound".to_owned()],
            sections: String::new(),
        }
    }

    /// Creates a policy whose backend `app` is one scripted backend.
    pub(crate) fn to_backend(backend: &ScriptedBackend) -> Self {
        Self::new(&[backend.address])
    }

    /// Makes the listener an outbound one; its name stays `inbound`.
    pub(crate) fn outbound(mut self) -> Self {
        self.direction = "Outbound";
        self
    }

    /// Sets the address that the listener binds.
    pub(crate) fn listener_address(mut self, address: impl Display) -> Self {
        self.listener_address = address.to_string();
        self
    }

    /// Adds fields to the listener `inbound`.
    pub(crate) fn listener_fields(mut self, fields: impl Into<String>) -> Self {
        self.listener.push(fields.into());
        self
    }

    /// Adds an endpoint to the backend `app`, for example `{address: "127.0.0.1:80", weight: 2}`.
    pub(crate) fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoints.push(endpoint.into());
        self
    }

    /// Adds fields to the backend `app`.
    pub(crate) fn backend_fields(mut self, fields: impl Into<String>) -> Self {
        self.backend.push(fields.into());
        self
    }

    /// Adds fields to the route `in`.
    pub(crate) fn route_fields(mut self, fields: impl Into<String>) -> Self {
        self.route.push(fields.into());
        self
    }

    /// Adds another listener. The route `in` takes the requests of both if `is_routed`.
    pub(crate) fn listener(mut self, name: &str, fields: &str, is_routed: bool) -> Self {
        self.listeners.push(format!("name: {name}, {fields}"));
        if is_routed {
            self.route_listeners.push(name.to_owned());
        }
        self
    }

    /// Adds another backend with its fields.
    pub(crate) fn backend(mut self, name: &str, fields: &str) -> Self {
        self.backends.push(format!("name: {name}, {fields}"));
        self
    }

    /// Adds another backend that is one scripted backend.
    pub(crate) fn scripted_backend(self, name: &str, backend: &ScriptedBackend) -> Self {
        let fields = format!("endpoints: [\"{}\"]", backend.address);
        self.backend(name, &fields)
    }

    /// Adds another route with its fields.
    pub(crate) fn route(mut self, name: &str, fields: &str) -> Self {
        self.routes.push(format!("name: {name}, {fields}"));
        self
    }

    /// Adds sections of `spec`, in block style with an indentation of two spaces.
    pub(crate) fn sections(mut self, sections: &str) -> Self {
        self.sections.push_str(sections);
        self
    }

    /// Returns the text of the policy file.
    pub(crate) fn build(&self) -> String {
        let mut listener = vec![format!(
            "name: inbound, direction: {}, address: \"{}\"",
            self.direction, self.listener_address
        )];
        listener.extend_from_slice(&self.listener);
        let mut backend = vec!["name: app".to_owned()];
        if !self.endpoints.is_empty() {
            backend.push(format!(
                "endpoints: [{}]",
                self.endpoints
                    .iter()
                    .map(quote)
                    .collect::<Vec<_>>()
                    .join(", ")
            ));
        }
        backend.extend_from_slice(&self.backend);
        let mut route = vec![format!(
            "name: in, listeners: [{}]",
            self.route_listeners.join(", ")
        )];
        if !self
            .route
            .iter()
            .any(|fields| fields.contains("backendRefs:") || fields.contains("RequestRedirect"))
        {
            route.push("backendRefs: [{name: app}]".to_owned());
        }
        route.extend_from_slice(&self.route);
        format!(
            "apiVersion: outrigger.dev/v1alpha1\nkind: ResiliencePolicy\n\
             metadata: {{name: test}}\nspec:\n{}{}{}{}",
            list("listeners", &listener, &self.listeners),
            list("backends", &backend, &self.backends),
            list("routes", &route, &self.routes),
            self.sections,
        )
    }
}

/// Formats a list of `spec` whose first item consists of several groups of fields.
fn list(key: &str, first: &[String], others: &[String]) -> String {
    let first = first.join(", ");
    std::iter::once(&first)
        .chain(others)
        .fold(format!("  {key}:\n"), |text, item| {
            format!("{text}    - {{{item}}}\n")
        })
}

/// Quotes an address; an endpoint that is a mapping stays as it is.
fn quote(endpoint: &String) -> String {
    if endpoint.starts_with('{') {
        endpoint.clone()
    } else {
        format!("\"{endpoint}\"")
    }
}

/// Returns a policy with one backend `app`, and further sections of `spec`.
pub(crate) fn policy(endpoints: &[SocketAddr], sections: &str) -> String {
    PolicyBuilder::new(endpoints).sections(sections).build()
}
