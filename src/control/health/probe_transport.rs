//! Sends health checks and app probes to an endpoint.
//!
//! A check uses the same transport and the same TLS material as proxied requests. This module
//! does not know whether a response passes.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;

use crate::{
    control::{http1_call, http2_call},
    policy::snapshot::{BackendSpec, BackendTlsSpec, Protocol},
    state::{State, topology::endpoint::EndpointState},
    transport::{self, connect::ClientTls, queued_stream::QueuedStream},
};

/// Maximum number of bytes of a response body that are read, to find the expected text or to
/// relay a probe response.
pub(super) const MAX_CHECK_BODY_BYTES: usize = 4 << 10;

/// Protocol and TLS settings with which an endpoint is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProbeTransport {
    protocol: Protocol,
    tls: Option<BackendTlsSpec>,
}

/// `GET` request of a health check or app probe over HTTP.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProbeRequest<'r> {
    pub(super) path: &'r str,
    /// Value of the host header.
    pub(super) host: &'r str,
    /// Maximum number of bytes of the response body that are read.
    pub(super) max_body_bytes: usize,
}

/// Response to a health check or app probe over HTTP.
pub(super) struct ProbeResponse {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl ProbeTransport {
    /// Returns the transport that proxied requests to the backend use.
    pub(super) fn from_backend(backend: &BackendSpec) -> Self {
        Self {
            protocol: backend.protocol,
            tls: backend.tls.clone(),
        }
    }

    pub(super) fn uses_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Connects to an endpoint. `protocol` is the only ALPN protocol that is offered; without
    /// TLS it has no effect.
    ///
    /// # Errors
    /// A message that names the failed phase: `connect` or `tls`. With TLS, a peer that does not
    /// select `h2` when `h2` is offered is an error.
    pub(super) async fn connect(
        &self,
        state: &State,
        endpoint: &EndpointState,
        protocol: Option<&[u8]>,
    ) -> Result<QueuedStream, String> {
        let tls = match &self.tls {
            None => None,
            Some(spec) => {
                let material = state
                    .tls
                    .backend_material(spec)
                    .ok_or_else(|| "tls: there are no certificates".to_owned())?;
                let mut config = (*material.config).clone();
                config.alpn_protocols = protocol.into_iter().map(<[u8]>::to_vec).collect();
                Some(ClientTls {
                    config: Arc::new(config),
                    server_name: &spec.sni,
                    requires_http2: protocol == Some(b"h2"),
                })
            }
        };
        transport::connect::connect(&endpoint.address, tls)
            .await
            .map_err(|error| error.to_string())
    }

    /// Passes if a connection, including TLS if configured, can be established.
    ///
    /// # Errors
    /// The message of the failed connection attempt.
    pub(super) async fn check_connect(
        &self,
        state: &State,
        endpoint: &EndpointState,
    ) -> Result<(), String> {
        self.connect(state, endpoint, None).await.map(drop)
    }

    /// Sends a `GET` request over HTTP/1 or HTTP/2, depending on the protocol of the backend.
    ///
    /// # Errors
    /// A message for a failed connection, an invalid request or an invalid response. Any status
    /// is a success.
    pub(super) async fn send_get(
        &self,
        state: &State,
        endpoint: &EndpointState,
        request: ProbeRequest<'_>,
    ) -> Result<ProbeResponse, String> {
        let ProbeRequest {
            path,
            host,
            max_body_bytes,
        } = request;
        if self.protocol == Protocol::Http1 {
            let connection = self.connect(state, endpoint, Some(b"http/1.1")).await?;
            let response = http1_call::send_request(
                connection,
                http1_call::build_request_head("GET", path, host, &Bytes::new())?,
                Bytes::new(),
                max_body_bytes,
            )
            .await?;
            return Ok(ProbeResponse {
                status: response.status,
                headers: response.headers,
                body: response.body.into(),
            });
        }
        let connection = self.connect(state, endpoint, Some(b"h2")).await?;
        let scheme = if self.uses_tls() { "https" } else { "http" };
        let request = http::Request::get(format!("{scheme}://{host}{path}"))
            .header(http::header::USER_AGENT, http1_call::USER_AGENT)
            .body(());
        let response = http2_call::send_request(
            connection,
            request.map_err(|error| error.to_string())?,
            Bytes::new(),
            max_body_bytes,
        )
        .await?;
        Ok(ProbeResponse {
            status: response.status,
            headers: response.headers,
            body: response.body,
        })
    }
}
