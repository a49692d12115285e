//! Endpoints as they are written: in a policy, or in a file of their own that is watched.
//!
//! Such a file is a list of what a policy's `endpoints` holds, in YAML or JSON, or a mapping with that key. It is taken whole or
//! not at all: when it is faulty, what was known before stays in force. The beginning of a list in YAML may be a shorter one; who
//! reads the file has to see that it is no longer being written.

use std::{collections::HashSet, fs, num::NonZeroU32, path::Path, sync::Arc};

use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    diagnostic::{Diagnostic, Diagnostics, Place},
    document::{Endpoint, EndpointEntry},
    snapshot::EndpointSpec,
    structure,
    tree::{self, Node, NodeKind, Position},
};

/// Endpoints in a file; more are refused, as they would be a mistake.
const MAX_ENDPOINTS: usize = 10_000;

/// The form with a key.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Keyed {
    endpoints: Vec<EndpointEntry>,
}

/// What is wrong with an endpoint.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// The key that is wrong, or the whole.
    pub(super) key: Option<&'static str>,
    pub(super) message: String,
    pub(super) hint: &'static str,
}

/// Makes an endpoint of what is written.
pub(super) fn spec(endpoint: &Endpoint) -> Result<EndpointSpec, Fault> {
    let address = endpoint.address.parse().map_err(|_| Fault {
        key: None,
        message: format!("`{}` is not an endpoint", endpoint.address),
        hint: "write an IP address and a port, like `127.0.0.1:8080`, or `unix:/run/app.sock`; for names there is `dns`",
    })?;
    let weight = NonZeroU32::new(endpoint.weight).ok_or_else(|| Fault {
        key: Some("weight"),
        message: "an endpoint without weight would never be picked".to_owned(),
        hint: "take it out, or write a weight of at least 1",
    })?;
    Ok(EndpointSpec {
        address,
        weight,
        zone: endpoint.zone.as_deref().map(Arc::from),
        priority: endpoint.priority,
    })
}

/// Reads a file of endpoints.
///
/// # Errors
/// All its faults, with their places.
pub fn read(path: &Path) -> Result<Vec<EndpointSpec>, Diagnostics> {
    let name: Arc<str> = path.display().to_string().into();
    let whole = |message: String| Diagnostic::error(Place::whole(name.clone()), message);
    let text =
        fs::read_to_string(path).map_err(|error| whole(format!("cannot be read: {error}")))?;
    parse(&name, &text)
}

/// Makes endpoints of a file's text.
///
/// # Errors
/// All its faults, with their places.
pub fn parse(name: &Arc<str>, text: &str) -> Result<Vec<EndpointSpec>, Diagnostics> {
    let fault = |position: Position, message: String, hint: Option<String>| Diagnostic {
        hint,
        ..Diagnostic::error(Place::at(name.clone(), text, position), message)
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
        schemars::schema_for!(Keyed)
    } else {
        schemars::schema_for!(Vec<EndpointEntry>)
    };
    let mut faults: Vec<Diagnostic> = structure::check(root, &schema.to_value())
        .into_iter()
        .map(|found| fault(found.position, found.message, found.hint))
        .collect();
    if faults.is_empty() {
        let options = serde_saphyr::options! { with_snippet: false };
        let read = if is_keyed {
            serde_saphyr::from_str_with_options::<Keyed>(text, options).map(|keyed| keyed.endpoints)
        } else {
            serde_saphyr::from_str_with_options(text, options)
        };
        match read {
            Ok(entries) => return specs(&entries, &places(root), fault),
            Err(error) => faults.push(fault(
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
    Err(Diagnostics::new(faults))
}

fn specs(
    entries: &[EndpointEntry],
    places: &[Position],
    fault: impl Fn(Position, String, Option<String>) -> Diagnostic,
) -> Result<Vec<EndpointSpec>, Diagnostics> {
    let at = |index: usize| places.get(index).copied().unwrap_or((0, 0));
    let mut seen = HashSet::new();
    let (mut made, mut faults) = (Vec::new(), Vec::new());
    for (index, EndpointEntry(endpoint)) in entries.iter().enumerate() {
        match spec(endpoint) {
            Ok(spec) if !seen.insert(spec.address.clone()) => faults.push(fault(
                at(index),
                format!("the endpoint {} is given twice", spec.address),
                None,
            )),
            Ok(spec) => made.push(spec),
            Err(wrong) => faults.push(fault(at(index), wrong.message, Some(wrong.hint.to_owned()))),
        }
    }
    if entries.len() > MAX_ENDPOINTS {
        faults.push(fault(
            (0, 0),
            format!("{} endpoints are more than {MAX_ENDPOINTS}", entries.len()),
            None,
        ));
    }
    if faults.is_empty() {
        Ok(made)
    } else {
        Err(Diagnostics::new(faults))
    }
}

/// Where each endpoint stands.
fn places(root: &Node) -> Vec<Position> {
    match &root.kind {
        NodeKind::Sequence(items) => items.iter().map(|item| item.position).collect(),
        NodeKind::Mapping(entries) => entries
            .first()
            .map(|(_, list)| places(list))
            .unwrap_or_default(),
        NodeKind::Scalar { .. } | NodeKind::Alias => Vec::new(),
    }
}

/// Whether a text is a name that can be resolved (RFC 1123 section 2.1, with the underscores of SRV).
#[must_use]
pub fn is_name(text: &str) -> bool {
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
mod tests {
    use super::*;

    fn addresses(text: &str) -> Result<Vec<String>, String> {
        let parsed = parse(&Arc::from("e.yaml"), text);
        parsed
            .map(|specs| specs.iter().map(|spec| spec.address.to_string()).collect())
            .map_err(|faults| faults.to_string())
    }

    #[test]
    fn a_file_is_a_list_or_a_mapping_in_yaml_or_json() {
        let both = Ok(vec![
            "10.0.0.1:80".to_owned(),
            "unix:/run/app.sock".to_owned(),
        ]);
        for text in [
            "- 10.0.0.1:80\n- unix:/run/app.sock\n",
            "endpoints:\n  - {address: '10.0.0.1:80', weight: 2, zone: a, priority: 1}\n  - unix:/run/app.sock\n",
            r#"["10.0.0.1:80", {"address": "unix:/run/app.sock"}]"#,
            r#"{"endpoints": ["10.0.0.1:80", "unix:/run/app.sock"]}"#,
        ] {
            assert_eq!(addresses(text), both, "{text}");
        }
        assert_eq!(addresses("[]"), Ok(Vec::new()));
    }

    #[test]
    fn a_faulty_file_is_refused_with_its_places() {
        let table = [
            ("", "there must be one document"),
            ("[\"10.0.0.1:80\", ", "neither YAML nor JSON"),
            (
                "- 10.0.0.1:80\n- nonsense\n",
                "e.yaml:2:3: `nonsense` is not an endpoint",
            ),
            ("- 10.0.0.1:80\n- 10.0.0.1:80\n", "given twice"),
            ("- {address: '10.0.0.1:80', weight: 0}\n", "without weight"),
            ("- {adress: '10.0.0.1:80'}\n", "unknown key `adress`"),
            ("endpoint: []\n", "unknown key `endpoint`"),
            ("just text", "is not a list"),
            ("- unix:relative.sock\n", "is not an endpoint"),
        ];
        for (text, expected) in table {
            let faults = addresses(text).expect_err(text);
            assert!(faults.contains(expected), "{text:?}: {faults}");
        }
    }

    #[test]
    fn names_are_told_from_addresses() {
        for (text, expected) in [
            ("pay.shop.svc.cluster.local.", true),
            ("_http._tcp.pay", true),
            ("localhost", true),
            ("10.0.0.1", false),
            ("", false),
            (".", false),
            ("a..b", false),
            ("-a", false),
            ("pay shop", false),
            ("http://pay", false),
        ] {
            assert_eq!(is_name(text), expected, "{text}");
        }
    }
}
