//! TLS: which files, and what is spoken.

use std::{path::PathBuf, sync::Arc};

use super::{At, Compiler};
use crate::policy::{
    document::{Allow, BackendProtocol, BackendTls, ClientAuth, ListenerProtocol, ListenerTls},
    endpoints,
    snapshot::{ClientTlsSpec, KeyPair, Protocol, ServerTlsSpec, SourcePlace},
};

impl<'a> Compiler<'a> {
    pub(super) fn listener_protocol(protocol: Option<ListenerProtocol>) -> Protocol {
        match protocol {
            Some(ListenerProtocol::HTTP1) => Protocol::Http1,
            Some(ListenerProtocol::HTTP2) => Protocol::Http2,
            None | Some(ListenerProtocol::Auto) => Protocol::Auto,
        }
    }

    pub(super) fn backend_protocol(protocol: Option<BackendProtocol>) -> Protocol {
        match protocol {
            None | Some(BackendProtocol::HTTP1) => Protocol::Http1,
            Some(BackendProtocol::HTTP2) => Protocol::Http2,
            Some(BackendProtocol::GRPC) => Protocol::Grpc,
        }
    }

    pub(super) fn server_tls(
        &mut self,
        at: &At<'a>,
        tls: &ListenerTls,
        protocol: Protocol,
    ) -> Option<ServerTlsSpec> {
        let cert = self.file(&at.key("certFile"), &tls.cert_file);
        let key = self.file(&at.key("keyFile"), &tls.key_file);
        let client_ca = tls
            .client_ca_file
            .as_ref()
            .map(|path| self.file(&at.key("clientCaFile"), path));
        let auth = tls.client_auth.unwrap_or(if client_ca.is_some() {
            ClientAuth::Required
        } else {
            ClientAuth::None
        });
        match (auth, &client_ca) {
            (ClientAuth::Required | ClientAuth::Optional, None) => {
                self.error(
                    &at.key("clientAuth"),
                    "nobody says which certificates of clients are good",
                )
                .hint("add `clientCaFile`, or write `clientAuth: None`");
            }
            (ClientAuth::None, Some(_)) => {
                self.error(
                    &at.key("clientCaFile"),
                    "clients are not asked for certificates",
                )
                .hint("take `clientCaFile` out, or write `clientAuth: Required`");
            }
            _ => {}
        }
        Some(ServerTlsSpec {
            identity: KeyPair {
                cert: cert?,
                key: key?,
            },
            client_ca: client_ca.flatten(),
            is_client_optional: auth == ClientAuth::Optional,
            protocol,
            place: source_place(at),
        })
    }

    pub(super) fn client_tls(
        &mut self,
        at: &At<'a>,
        tls: &BackendTls,
        protocol: Protocol,
    ) -> Option<ClientTlsSpec> {
        if !endpoints::is_name(&tls.sni) && tls.sni.parse::<std::net::IpAddr>().is_err() {
            self.error(
                &at.key("sni"),
                format!("`{}` is no name that a certificate could have", tls.sni),
            )
            .hint("write the name of the backend, like `pay.shop.svc`");
        }
        let ca = tls
            .ca_file
            .as_ref()
            .map(|path| self.file(&at.key("caFile"), path));
        let identity = match (&tls.cert_file, &tls.key_file) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some(KeyPair {
                cert: self.file(&at.key("certFile"), cert)?,
                key: self.file(&at.key("keyFile"), key)?,
            }),
            _ => {
                self.error(at, "a certificate and its key belong together")
                    .hint("give both `certFile` and `keyFile`, or neither");
                None
            }
        };
        Some(ClientTlsSpec {
            sni: tls.sni.trim_end_matches('.').to_owned(),
            ca: ca.flatten(),
            identity,
            protocol,
            place: source_place(at),
        })
    }

    /// The identities that may use a route, if not everybody may.
    pub(super) fn allowed(
        &mut self,
        at: &At<'a>,
        allow: Option<&Allow>,
        can_identify: bool,
    ) -> Option<Vec<Arc<str>>> {
        let allow = allow?;
        if allow.identities.is_empty() {
            self.error(at, "with no identity nobody could use this route")
                .hint("name at least one, or take `allow` out");
        }
        if !can_identify {
            let hint = "give the listener `tls` with a `clientCaFile`";
            self.error(
                at,
                "no listener of this route asks clients for certificates, so nobody could use it",
            )
            .hint(hint);
        }
        for (index, identity) in allow.identities.iter().enumerate() {
            let star = identity.find('*');
            if identity.is_empty() || star.is_some_and(|place| place + 1 != identity.len()) {
                self.error(
                    &at.key("identities").index(index),
                    format!("`{identity}` is not an identity"),
                )
                .hint("write it as it is in the certificate; a `*` may stand at the end");
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

    fn file(&mut self, at: &At<'a>, path: &str) -> Option<PathBuf> {
        if path.is_empty() {
            self.error(at, "this is not the path of a file")
                .hint("write the path of a PEM file, like `/tls/tls.crt`");
            return None;
        }
        Some(PathBuf::from(path))
    }
}

pub(super) fn source_place(at: &At<'_>) -> SourcePlace {
    let place = at.place();
    SourcePlace(format!("{}:{}:{}", place.file, place.line, place.column).into())
}
