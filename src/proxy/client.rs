//! The client's side of an exchange.

use std::{net::IpAddr, sync::Arc};

use pingora::{http::RequestHeader, protocols::http::ServerSession};

use super::wire::Wire;
use crate::policy::snapshot::ListenerSpec;

/// A client with one request.
pub(super) struct Client {
    /// The framing of the request and its answer; boxed, because it is handed on from step to step.
    pub(super) session: Box<ServerSession>,
    /// The transport below.
    pub(super) wire: Arc<Wire>,
    /// Who it is.
    pub(super) peer: IpAddr,
    /// Where it came in.
    pub(super) listener: Arc<ListenerSpec>,
}

impl Client {
    /// The head of the request.
    pub(super) fn head(&self) -> &RequestHeader {
        self.session.req_header()
    }

    /// The value of a header if it is text.
    pub(super) fn text(&self, name: &http::HeaderName) -> Option<&str> {
        self.head().headers.get(name).and_then(|value| value.to_str().ok())
    }
}
