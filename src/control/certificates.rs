//! Loads certificate files for listeners and backends, and reloads them when their content
//! changes.
//!
//! This module decides which certificates new connections use. It does not know which
//! connections use a certificate.
//!
//! | files | effect |
//! | --- | --- |
//! | of a new policy set, unreadable, invalid or expired | the whole set is rejected |
//! | in use, now unreadable or invalid | the previous content stays in use; reported |
//! | in use, replaced by expired certificates | the previous content stays in use; reported |
//! | in use, a certificate expires or is close to expiry | the content stays in use; reported |
//!
//! "Reported" means an event, a metric and an entry in the readiness report.

mod files;
mod reports;

use std::{sync::Arc, time::Duration};

use crate::{
    clock,
    control::certificates::{
        files::CertificateFiles,
        reports::{CertificateReports, reject_expired},
    },
    policy::snapshot::PolicySnapshot,
    state::{
        State,
        topology::tls::{TlsMaterial, TlsStore, TlsUpdate},
    },
    telemetry::tls_subject::TlsSubject,
};

/// Loads all certificate files of a policy set that the store does not hold yet.
///
/// # Errors
/// One message for each faulty listener or backend, prefixed with the policy location that
/// names the file.
pub(super) fn load_missing(
    snapshot: &PolicySnapshot,
    store: &TlsStore,
) -> Result<TlsUpdate, Vec<String>> {
    let (mut fresh, mut faults) = (TlsUpdate::default(), Vec::new());
    for spec in snapshot
        .listeners
        .iter()
        .filter_map(|listener| listener.tls.as_ref())
        .filter(|spec| store.listener_material(spec).is_none())
    {
        match CertificateFiles::read_server(spec)
            .and_then(|files| files.build_server(spec, store))
            .and_then(reject_expired)
        {
            Ok(material) => drop(fresh.listeners.insert(spec.clone(), material)),
            Err(fault) => faults.push(format!("{}: {fault}", spec.location)),
        }
    }
    for spec in snapshot
        .backends
        .iter()
        .filter_map(|backend| backend.tls.as_ref())
        .filter(|spec| store.backend_material(spec).is_none())
    {
        match CertificateFiles::read_client(spec)
            .and_then(|files| files.build_client(spec, store))
            .and_then(reject_expired)
        {
            Ok(material) => drop(fresh.backends.insert(spec.clone(), material)),
            Err(fault) => faults.push(format!("{}: {fault}", spec.location)),
        }
    }
    if faults.is_empty() {
        Ok(fresh)
    } else {
        Err(faults)
    }
}

/// Checks the certificate files of the active policy every `poll_interval`, and reloads changed
/// ones. Never returns.
pub(super) async fn watch_certificates(state: Arc<State>, poll_interval: Duration) {
    let mut reported = CertificateReports::default();
    loop {
        let active_policy = state.active_policy.load_full();
        let (mut fresh, mut subjects) = (TlsUpdate::default(), Vec::new());
        for listener in &active_policy.snapshot.listeners {
            let Some((spec, known)) = listener
                .tls
                .as_ref()
                .and_then(|spec| Some((spec, state.tls.listener_material(spec)?)))
            else {
                continue;
            };
            let subject = TlsSubject::Listener(listener.name.clone());
            let files = CertificateFiles::read_server(spec);
            let read =
                reload_if_changed(files, &known, |files| files.build_server(spec, &state.tls));
            fresh.listeners.insert(
                spec.clone(),
                reported.select_and_report(&state, &subject, read, &known),
            );
            subjects.push(subject);
        }
        for backend in &active_policy.snapshot.backends {
            let Some((spec, known)) = backend
                .tls
                .as_ref()
                .and_then(|spec| Some((spec, state.tls.backend_material(spec)?)))
            else {
                continue;
            };
            let subject = TlsSubject::Backend(backend.name.clone());
            let files = CertificateFiles::read_client(spec);
            let read =
                reload_if_changed(files, &known, |files| files.build_client(spec, &state.tls));
            fresh.backends.insert(
                spec.clone(),
                reported.select_and_report(&state, &subject, read, &known),
            );
            subjects.push(subject);
        }
        state.tls.apply(&fresh);
        reported.retain_subjects(&state, &subjects);
        clock::sleep(poll_interval).await;
    }
}

/// Returns the known material if the files have the same content, otherwise what they build.
fn reload_if_changed<C>(
    files: Result<CertificateFiles, String>,
    known: &TlsMaterial<C>,
    build: impl FnOnce(&CertificateFiles) -> Result<TlsMaterial<C>, String>,
) -> Result<TlsMaterial<C>, String> {
    files.and_then(|files| {
        if files.content_hash == known.content_hash {
            Ok(known.clone())
        } else {
            build(&files)
        }
    })
}
