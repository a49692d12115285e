//! Policy files of the tests.

use std::{fmt::Display, net::SocketAddr};

use super::ScriptedBackend;

/// Policy file with a listener `inbound` or `outbound`, a backend `app`, and a route `in` from one
/// to the other.
///
/// A test states what differs. Fields and items are YAML in flow style, without outer braces.
#[derive(Clone)]
pub(crate) struct PolicyBuilder {
    listener_name: String,
    listener: Vec<String>,
    listener_address: String,
    direction: &'static str,
    backend_name: String,
    endpoints: Vec<String>,
    backend: Vec<String>,
    route: Vec<String>,
    /// Items of `backendRefs` of the route `in`; `None` for the backend `app` alone.
    route_backends: Option<String>,
    listeners: Vec<String>,
    backends: Vec<String>,
    routes: Vec<String>,
    /// Names of the other listeners whose requests the route `in` takes.
    routed_listeners: Vec<String>,
    sections: String,
}

impl PolicyBuilder {
    /// Creates a policy whose backend `app` has these endpoints. If there are none, the backend
    /// has no `endpoints` field, so that the test can add another kind of discovery.
    pub(crate) fn new(endpoints: &[SocketAddr]) -> Self {
        Self {
            listener_name: "inbound".to_owned(),
            listener: Vec::new(),
            listener_address: "127.0.0.1:0".to_owned(),
            direction: "Inbound",
            backend_name: "app".to_owned(),
            endpoints: endpoints.iter().map(ToString::to_string).collect(),
            backend: Vec::new(),
            route: Vec::new(),
            route_backends: None,
            listeners: Vec::new(),
            backends: Vec::new(),
            routes: Vec::new(),
            routed_listeners: Vec::new(),
            sections: String::new(),
        }
    }

    /// Creates a policy whose backend `app` is one scripted backend.
    pub(crate) fn to_backend(backend: &ScriptedBackend) -> Self {
        Self::new(&[backend.address])
    }

    /// Makes the listener an outbound one with the name `outbound`.
    pub(crate) fn outbound(mut self) -> Self {
        self.direction = "Outbound";
        self.listener_name("outbound")
    }

    /// Renames the listener `inbound`.
    pub(crate) fn listener_name(mut self, name: &str) -> Self {
        self.listener_name = name.to_owned();
        self
    }

    /// Renames the backend `app`.
    pub(crate) fn backend_name(mut self, name: &str) -> Self {
        self.backend_name = name.to_owned();
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

    /// Replaces the backends of the route `in`. Items are separated by commas, for example
    /// `{name: app, weight: 2}`.
    pub(crate) fn route_backends(mut self, items: &str) -> Self {
        self.route_backends = Some(items.to_owned());
        self
    }

    /// Adds another listener with its fields. The route `in` does not take its requests.
    pub(crate) fn listener(mut self, name: &str, fields: &str) -> Self {
        self.listeners.push(format!("name: {name}, {fields}"));
        self
    }

    /// Adds another listener with its fields. The route `in` takes its requests too.
    pub(crate) fn routed_listener(mut self, name: &str, fields: &str) -> Self {
        self.routed_listeners.push(name.to_owned());
        self.listener(name, fields)
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
            "name: {}, direction: {}, address: \"{}\"",
            self.listener_name, self.direction, self.listener_address
        )];
        listener.extend_from_slice(&self.listener);
        let mut backend = vec![format!("name: {}", self.backend_name)];
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
        let mut route_listeners = vec![self.listener_name.clone()];
        route_listeners.extend_from_slice(&self.routed_listeners);
        let route_backends = self
            .route_backends
            .clone()
            .unwrap_or_else(|| format!("{{name: {}}}", self.backend_name));
        let mut route = vec![format!(
            "name: in, listeners: [{}], backendRefs: [{route_backends}]",
            route_listeners.join(", ")
        )];
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
