//! Splits the values of the headers that instances announce their state in.
//!
//! A value has the form `VALUE; NAME=VALUE; ...`, with optional spaces around each part. The
//! module does not know the meaning of a part.

/// Splits a header value into the text before the first `;` and the named parameters after it.
///
/// Parts without `=` are skipped.
pub(super) fn split_parameters(header_value: &str) -> (&str, impl Iterator<Item = (&str, &str)>) {
    let (value, parameters) = header_value.split_once(';').unwrap_or((header_value, ""));
    let parameters = parameters
        .split(';')
        .filter_map(|parameter| parameter.trim().split_once('='));
    (value.trim(), parameters)
}
