//! Compiles TLS: certificate paths, protocols and permitted identities.
//!
//! It checks that the settings are complete. It does not read the files;
//! `control::certificates` does.

use std::{path::PathBuf, sync::Arc};

use crate::policy::{
    compile::compiler::Compiler,
    document::{
        AllowedIdentities, BackendProtocol, BackendTls, ClientAuth, ListenerProtocol, ListenerTls,
    },
    endpoints,
    report::FieldLocation,
    snapshot::{BackendTlsSpec, IdentityFiles, ListenerTlsSpec, Protocol, SourceLocation},
};

impl<'a> Compiler<'a> {
    pub(super) fn compile_listener_protocol(protocol: Option<ListenerProtocol>) -> Protocol {
        match protocol {
            Some(ListenerProtocol::HTTP1) => Protocol::Http1,
            Some(ListenerProtocol::HTTP2) => Protocol::Http2,
            None | Some(ListenerProtocol::Auto) => Protocol::Auto,
        }
    }

    pub(super) fn compile_backend_protocol(protocol: Option<BackendProtocol>) -> Protocol {
        match protocol {
            None | Some(BackendProtocol::HTTP1) => Protocol::Http1,
            Some(BackendProtocol::HTTP2) => Protocol::Http2,
            Some(BackendProtocol::GRPC) => Protocol::Grpc,
        }
    }

    pub(super) fn compile_listener_tls(
        &mut self,
        at: &FieldLocation<'_>,
        tls: &ListenerTls,
        protocol: Protocol,
    ) -> Option<ListenerTlsSpec> {
        let cert = self.parse_file_path(&at.key("certFile"), &tls.cert_file);
        let key = self.parse_file_path(&at.key("keyFile"), &tls.key_file);
        let client_ca = tls
            .client_ca_file
            .as_ref()
            .map(|path| self.parse_file_path(&at.key("clientCaFile"), path));
        let auth = tls.client_auth.unwrap_or(if client_ca.is_some() {
            ClientAuth::Required
        } else {
            ClientAuth::None
        });
        match (auth, &client_ca) {
            (ClientAuth::Required | ClientAuth::Optional, None) => {
                self.report
                    .error(
                        &at.key("clientAuth"),
                        "without `clientCaFile`, no client certificate can be verified",
                    )
                    .hint("add `clientCaFile`, or write `clientAuth: None`");
            }
            (ClientAuth::None, Some(_)) => {
                self.report
                    .error(
                        &at.key("clientCaFile"),
                        "client certificates are not requested",
                    )
                    .hint("remove `clientCaFile`, or write `clientAuth: Required`");
            }
            _ => {}
        }
        Some(ListenerTlsSpec {
            identity: IdentityFiles {
                cert: cert?,
                key: key?,
            },
            client_ca: client_ca.flatten(),
            is_client_certificate_optional: auth == ClientAuth::Optional,
            protocol,
            location: source_location(at),
        })
    }

    pub(super) fn compile_backend_tls(
        &mut self,
        at: &FieldLocation<'_>,
        tls: &BackendTls,
        protocol: Protocol,
    ) -> Option<BackendTlsSpec> {
        if !endpoints::is_dns_name(&tls.sni) && tls.sni.parse::<std::net::IpAddr>().is_err() {
            self.report
                .error(
                    &at.key("sni"),
                    format!("`{}` is no name that a certificate could have", tls.sni),
                )
                .hint("write the name of the backend, like `pay.shop.svc`");
        }
        let ca = tls
            .ca_file
            .as_ref()
            .map(|path| self.parse_file_path(&at.key("caFile"), path));
        let identity = match (&tls.cert_file, &tls.key_file) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some(IdentityFiles {
                cert: self.parse_file_path(&at.key("certFile"), cert)?,
                key: self.parse_file_path(&at.key("keyFile"), key)?,
            }),
            _ => {
                self.report
                    .error(at, "`certFile` and `keyFile` must be set together")
                    .hint("give both `certFile` and `keyFile`, or neither");
                None
            }
        };
        Some(BackendTlsSpec {
            sni: tls.sni.trim_end_matches('.').to_owned(),
            ca: ca.flatten(),
            identity,
            protocol,
            location: source_location(at),
        })
    }

    /// Compiles the client identities that may use a route; `None` admits every client.
    pub(super) fn compile_allowed_identities(
        &mut self,
        at: &FieldLocation<'_>,
        allow: Option<&AllowedIdentities>,
        can_identify: bool,
    ) -> Option<Vec<Arc<str>>> {
        let allow = allow?;
        if allow.identities.is_empty() {
            self.report
                .error(at, "without an identity, no client may use this route")
                .hint("name at least one, or remove `allow`");
        }
        if !can_identify {
            let hint = "give the listener `tls` with a `clientCaFile`";
            self.report.error(
                at,
                "no listener of this route verifies client certificates, so no client may use it",
            )
            .hint(hint);
        }
        for (index, identity) in allow.identities.iter().enumerate() {
            let wildcard_index = identity.find('*');
            if identity.is_empty() || wildcard_index.is_some_and(|span| span + 1 != identity.len())
            {
                self.report
                    .error(
                        &at.key("identities").index(index),
                        format!("`{identity}` is not an identity"),
                    )
                    .hint("write it as in the certificate; it may end with `*`");
            }
        }
        Some(
            allow
                .identities
                .iter()
                .map(|identity| Arc::from(identity.as_str()))
                .collect(),
        )
    }

    fn parse_file_path(&mut self, at: &FieldLocation<'_>, path: &str) -> Option<PathBuf> {
        if path.is_empty() {
            self.report
                .error(at, "this is not the path of a file")
                .hint("write the path of a PEM file, like `/tls/tls.crt`");
            return None;
        }
        Some(PathBuf::from(path))
    }
}

pub(super) fn source_location(at: &FieldLocation<'_>) -> SourceLocation {
    let span = at.source_span();
    SourceLocation(format!("{}:{}:{}", span.file, span.line, span.column).into())
}
