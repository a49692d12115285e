//! Decides whether newly read certificates are used, and reports each change once.

use std::{collections::HashMap, time::Duration};

use crate::{
    clock,
    state::{State, topology::tls::TlsMaterial},
    telemetry::{event::Event, tls_subject::TlsSubject},
};

/// Remaining validity at or below which a certificate causes a warning. cert-manager renews
/// with a third of the lifetime left, 30 of 90 days by default, so this little time indicates a
/// failed renewal.
const EXPIRY_WARNING_PERIOD: Duration = Duration::from_hours(24 * 7);

/// Last reported status of each listener and backend with certificates, so that each change is
/// reported once.
#[derive(Debug, Default)]
pub(super) struct CertificateReports(HashMap<TlsSubject, CertificateReport>);

/// Last reported status of the certificates of one listener or backend.
#[derive(Debug)]
struct CertificateReport {
    expiry_status: ExpiryStatus,
    fault: Option<String>,
}

/// Expiry status, derived from the remaining validity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ExpiryStatus {
    Valid,
    ExpiresSoon,
    Expired,
}

impl ExpiryStatus {
    fn from_remaining(remaining: Option<Duration>) -> Self {
        match remaining {
            Some(Duration::ZERO) => Self::Expired,
            Some(remaining) if remaining <= EXPIRY_WARNING_PERIOD => Self::ExpiresSoon,
            Some(_) | None => Self::Valid,
        }
    }
}

impl CertificateReports {
    /// Returns the certificates to use after a read: the new ones if they are usable, otherwise
    /// the known ones.
    ///
    /// Emits events only for changes, and always updates the metric and the readiness report.
    pub(super) fn select_and_report<C>(
        &mut self,
        state: &State,
        subject: &TlsSubject,
        read: Result<TlsMaterial<C>, String>,
        known: &TlsMaterial<C>,
    ) -> TlsMaterial<C> {
        let reported = self.0.get(subject);
        let read = read.and_then(|material| {
            if material.generation == known.generation {
                Ok(material)
            } else {
                reject_expired(material)
            }
        });
        let current = match &read {
            Ok(material) if material.generation != known.generation => {
                state.telemetry.emit(Event::CertificateChanged {
                    subject: subject.clone(),
                });
                material.clone()
            }
            Ok(material) => material.clone(),
            Err(fault) => {
                if reported.is_none_or(|reported| reported.fault.as_ref() != Some(fault)) {
                    state.telemetry.emit(Event::CertificateRefused {
                        subject: subject.clone(),
                        reason: fault.clone(),
                    });
                }
                known.clone()
            }
        };
        let remaining = remaining_validity(&current);
        let expiry_status = ExpiryStatus::from_remaining(remaining);
        if let Some(remaining) = remaining.filter(|_| {
            expiry_status != ExpiryStatus::Valid
                && reported.is_none_or(|reported| reported.expiry_status != expiry_status)
        }) {
            state.telemetry.emit(Event::CertificateExpiring {
                subject: subject.clone(),
                remaining,
            });
        }
        let report = match (&read, expiry_status) {
            (Err(fault), _) => Err(format!("the last valid certificates stay active: {fault}")),
            (Ok(_), ExpiryStatus::Expired) => Err("a certificate has expired".to_owned()),
            (Ok(_), ExpiryStatus::ExpiresSoon) => Err(format!(
                "a certificate expires in {} hours",
                remaining.unwrap_or_default().as_secs() / 3_600
            )),
            (Ok(_), ExpiryStatus::Valid) => Ok("as they are in the files".to_owned()),
        };
        state.lifecycle.set_report(&report_name(subject), report);
        state
            .telemetry
            .metrics
            .set_certificate(subject, current.not_after, read.is_ok());
        self.0.insert(
            subject.clone(),
            CertificateReport {
                expiry_status,
                fault: read.err(),
            },
        );
        current
    }

    /// Removes the reports and metrics of subjects that the active policy no longer contains.
    pub(super) fn retain_subjects(&mut self, state: &State, subjects: &[TlsSubject]) {
        self.0.retain(|subject, _| {
            let is_there = subjects.contains(subject);
            if !is_there {
                state.lifecycle.remove_report(&report_name(subject));
                state.telemetry.metrics.clear_certificate(subject);
            }
            is_there
        });
    }
}

fn remaining_validity<C>(material: &TlsMaterial<C>) -> Option<Duration> {
    material.not_after.map(|expiry| {
        expiry
            .duration_since(clock::wall_time())
            .unwrap_or_default()
    })
}

/// Rejects expired certificates, because every handshake would fail.
pub(super) fn reject_expired<C>(material: TlsMaterial<C>) -> Result<TlsMaterial<C>, String> {
    match ExpiryStatus::from_remaining(remaining_validity(&material)) {
        ExpiryStatus::Expired => Err("a certificate in the files has expired; renew it".to_owned()),
        ExpiryStatus::ExpiresSoon | ExpiryStatus::Valid => Ok(material),
    }
}

/// Returns the name of the readiness report for the certificates of a subject.
fn report_name(subject: &TlsSubject) -> String {
    let [(_, kind), (_, name)] = subject.labels();
    format!("certificates-of-{kind}-{name}")
}
