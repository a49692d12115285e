//! Parses endpoints from the policy and from endpoint files.
//!
//! An endpoint file has the content of the policy key `endpoints`, in YAML or JSON: a list, or
//! a mapping with that key. A file is accepted as a whole or refused as a whole. If it is
//! refused, the previous endpoints remain in force.
//!
//! A truncated YAML list can be a valid, shorter list. The caller must therefore wait until the
//! file is no longer being written; this module cannot detect it.

use std::{collections::HashSet, fs, num::NonZeroU32, path::Path, sync::Arc};

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::{
    diagnostic::{Diagnostic, Diagnostics, SourceSpan},
    document::{EndpointEntry, EndpointFields},
    schema_check,
    snapshot::EndpointSpec,
    tree::{self, Node, NodeKind, Position},
};

/// Maximum number of endpoints in a file. A longer list is refused, because it is probably a
/// mistake.
const MAX_ENDPOINTS: usize = 10_000;

/// Endpoint file in the form of a mapping with the key `endpoints`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct EndpointsFile {
    endpoints: Vec<EndpointEntry>,
}

/// Problem with an endpoint, before its location in the file is known.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InvalidEndpoint {
    /// Key with the invalid value, or `None` for the endpoint as a whole.
    pub(super) key: Option<&'static str>,
    pub(super) message: String,
    pub(super) hint: &'static str,
}

/// Compiles an endpoint from its fields in the policy or in an endpoint file.
pub(super) fn compile_endpoint(endpoint: &EndpointFields) -> Result<EndpointSpec, InvalidEndpoint> {
    let address = endpoint.address.parse().map_err(|_| InvalidEndpoint {
        key: None,
        message: format!("`{}` is not an endpoint", endpoint.address),
        hint: "write an IP address and a port, like `127.0.0.1:8080`, or `unix:/run/app.sock`; for \
               names there is `dns`",
    })?;
    let weight = NonZeroU32::new(endpoint.weight).ok_or_else(|| InvalidEndpoint {
        key: Some("weight"),
        message: "an endpoint with weight 0 would never be selected".to_owned(),
        hint: "remove it, or write a weight of at least 1",
    })?;
    Ok(EndpointSpec {
        address,
        weight,
        zone: endpoint.zone.as_deref().map(Arc::from),
        priority: endpoint.priority,
    })
}

/// Reads and parses an endpoint file.
///
/// # Errors
/// Returns all problems of the file with their locations.
pub fn read_file(path: &Path) -> Result<Vec<EndpointSpec>, Diagnostics> {
    let name: Arc<str> = path.display().to_string().into();
    let file_error =
        |message: String| Diagnostic::error(SourceSpan::whole_file(name.clone()), message);
    let text =
        fs::read_to_string(path).map_err(|error| file_error(format!("cannot be read: {error}")))?;
    parse(&name, &text)
}

/// Parses the text of an endpoint file. `name` is the file name in the diagnostics.
///
/// # Errors
/// Returns all problems of the text with their locations.
pub fn parse(name: &Arc<str>, text: &str) -> Result<Vec<EndpointSpec>, Diagnostics> {
    let fault = |position: Position, message: String, hint: Option<String>| Diagnostic {
        hint,
        ..Diagnostic::error(
            SourceSpan::from_position(name.clone(), text, position),
            message,
        )
    };
    let roots = tree::parse(text).map_err(|(position, message)| {
        fault(position, format!("neither YAML nor JSON: {message}"), None)
    })?;
    let [root] = roots.as_slice() else {
        let hint = "write a list of endpoints; `[]` says that there is none";
        return Err(fault(
            (0, 0),
            "there must be one document in it".to_owned(),
            Some(hint.to_owned()),
        )
        .into());
    };
    let is_keyed = matches!(root.kind, NodeKind::Mapping(_));
    let schema = if is_keyed {
        schemars::schema_for!(EndpointsFile)
    } else {
        schemars::schema_for!(Vec<EndpointEntry>)
    };
    let mut diagnostics: Vec<Diagnostic> = schema_check::check(root, &schema.to_value())
        .into_iter()
        .map(|violation| fault(violation.position, violation.message, violation.hint))
        .collect();
    if diagnostics.is_empty() {
        let options = serde_saphyr::options! { with_snippet: false };
        let read = if is_keyed {
            serde_saphyr::from_str_with_options::<EndpointsFile>(text, options)
                .map(|keyed| keyed.endpoints)
        } else {
            serde_saphyr::from_str_with_options(text, options)
        };
        match read {
            Ok(entries) => return compile_endpoints(&entries, &endpoint_positions(root), fault),
            Err(error) => diagnostics.push(fault(
                (0, 0),
                error
                    .to_string()
                    .lines()
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
                None,
            )),
        }
    }
    Err(Diagnostics::new(diagnostics))
}

fn compile_endpoints(
    entries: &[EndpointEntry],
    positions: &[Position],
    fault: impl Fn(Position, String, Option<String>) -> Diagnostic,
) -> Result<Vec<EndpointSpec>, Diagnostics> {
    let at = |index: usize| positions.get(index).copied().unwrap_or((0, 0));
    let mut seen = HashSet::new();
    let (mut compiled, mut diagnostics) = (Vec::new(), Vec::new());
    for (index, EndpointEntry(endpoint)) in entries.iter().enumerate() {
        match compile_endpoint(endpoint) {
            Ok(spec) if !seen.insert(spec.address.clone()) => diagnostics.push(fault(
                at(index),
                format!("the endpoint {} is given twice", spec.address),
                None,
            )),
            Ok(spec) => compiled.push(spec),
            Err(invalid) => diagnostics.push(fault(
                at(index),
                invalid.message,
                Some(invalid.hint.to_owned()),
            )),
        }
    }
    if entries.len() > MAX_ENDPOINTS {
        diagnostics.push(fault(
            (0, 0),
            format!("{} endpoints are more than {MAX_ENDPOINTS}", entries.len()),
            None,
        ));
    }
    if diagnostics.is_empty() {
        Ok(compiled)
    } else {
        Err(Diagnostics::new(diagnostics))
    }
}

/// Returns the position of each endpoint, in the order of the list.
fn endpoint_positions(root: &Node) -> Vec<Position> {
    match &root.kind {
        NodeKind::Sequence(items) => items.iter().map(|item| item.position).collect(),
        NodeKind::Mapping(entries) => entries
            .first()
            .map(|(_, list)| endpoint_positions(list))
            .unwrap_or_default(),
        NodeKind::Scalar { .. } | NodeKind::Alias => Vec::new(),
    }
}

/// Returns whether a text is a host name that DNS can resolve.
///
/// The rules are those of RFC 1123 section 2.1, with the underscores of SRV names. A name whose
/// last label is a number is rejected, because it would be an address.
#[must_use]
pub fn is_dns_name(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_number = text
        .split('.')
        .next_back()
        .is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    text.len() <= 253 && text.split('.').all(is_label) && !is_number
}

#[cfg(test)]
mod tests;
