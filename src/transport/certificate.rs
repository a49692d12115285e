//! Reads the identity and the expiry time of a certificate.
//!
//! This module does not verify anything: rustls checks signatures, names and validity.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_parser::{extensions::GeneralName, parse_x509_certificate};

/// Returns the identity in a certificate: its first SPIFFE URI, or else its first DNS name.
///
/// `der` is the DER encoding. Returns `None` if it cannot be parsed or has neither name.
#[must_use]
pub fn identity(der: &[u8]) -> Option<String> {
    let (_, certificate) = parse_x509_certificate(der).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let spiffe = names
        .value
        .general_names
        .iter()
        .find_map(|name| match name {
            GeneralName::URI(uri) if uri.starts_with("spiffe://") => Some((*uri).to_owned()),
            _ => None,
        });
    spiffe.or_else(|| {
        names
            .value
            .general_names
            .iter()
            .find_map(|name| match name {
                GeneralName::DNSName(name) => Some((*name).to_owned()),
                _ => None,
            })
    })
}

/// Returns the end of the validity of a certificate, or `None` if it cannot be parsed.
///
/// A time before 1970 is returned as the Unix epoch.
#[must_use]
pub fn not_after(der: &[u8]) -> Option<SystemTime> {
    let (_, certificate) = parse_x509_certificate(der).ok()?;
    let seconds = certificate.validity().not_after.timestamp();
    Some(u64::try_from(seconds).map_or(UNIX_EPOCH, |seconds| {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }))
}
