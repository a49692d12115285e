//! Checks a document against the JSON Schema and reports every violation.
//!
//! A deserializer stops at its first error, but an author wants to see all errors at once. The
//! schema is derived from the types that deserialize the file, so both agree on the shape. What
//! passes here and is still rejected by the types is reported by them, one error at a time. The
//! module knows shapes and value ranges, but not references between sections.

use serde_json::Value;

use crate::policy::{
    diagnostic::did_you_mean,
    document::UNSUPPORTED_KEYS,
    tree::{MappingKey, Node, NodeKind, Position},
    units::{ByteSize, PolicyDuration, StatusRange, Timestamp},
};

/// Violation of the schema, with its position and the fix.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SchemaViolation {
    pub(super) position: Position,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

/// Returns all violations of the schema in a document.
pub(super) fn check(document: &Node, schema: &Value) -> Vec<SchemaViolation> {
    let mut checker = SchemaChecker {
        root: schema,
        violations: Vec::new(),
    };
    checker.check_node(document, schema, "the document");
    checker.violations
}

struct SchemaChecker<'a> {
    root: &'a Value,
    violations: Vec<SchemaViolation>,
}

/// Value that is neither a mapping nor a list.
struct Scalar<'n> {
    position: Position,
    text: &'n str,
    /// Whether the value is written without quotes.
    is_plain: bool,
    is_null: bool,
}

impl<'a> SchemaChecker<'a> {
    fn check_node(&mut self, node: &Node, schema: &'a Value, name: &str) {
        let schema = self.resolve(schema, node);
        match &node.kind {
            NodeKind::Alias => {}
            NodeKind::Mapping(entries) => self.check_mapping(node, entries, schema, name),
            NodeKind::Sequence(items) => match schema.get("items") {
                Some(inner) => items
                    .iter()
                    .for_each(|item| self.check_node(item, inner, name)),
                None => self.report_wrong_kind(node, schema, name, "a list"),
            },
            NodeKind::Scalar { text, is_plain } => {
                let scalar = Scalar {
                    position: node.position,
                    text,
                    is_plain: *is_plain,
                    is_null: node.is_null(),
                };
                self.check_scalar(&scalar, schema, name);
            }
        }
    }

    fn check_mapping(
        &mut self,
        node: &Node,
        entries: &[(MappingKey, Node)],
        schema: &'a Value,
        name: &str,
    ) {
        let properties = schema.get("properties").and_then(Value::as_object);
        let additional = schema
            .get("additionalProperties")
            .filter(|value| value.is_object());
        if properties.is_none() && additional.is_none() {
            return self.report_wrong_kind(node, schema, name, "a mapping");
        }
        for (index, (key, value)) in entries.iter().enumerate() {
            if entries[..index]
                .iter()
                .any(|(earlier, _)| earlier.text == key.text)
            {
                self.report_violation(
                    key.position,
                    format!("`{}` is given twice", key.text),
                    Some("keep one of the two".into()),
                );
            }
            match properties
                .and_then(|known| known.get(&key.text))
                .or(additional)
            {
                Some(inner) => self.check_node(value, inner, &format!("`{}`", key.text)),
                None => self.report_unknown_key(key, properties),
            }
        }
        let required = schema
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        for missing in
            required.filter(|required| !entries.iter().any(|(key, _)| key.text == **required))
        {
            self.report_violation(
                node.position,
                format!("{name} has no `{missing}`"),
                Some(format!("add `{missing}:`")),
            );
        }
    }

    fn report_unknown_key(
        &mut self,
        key: &MappingKey,
        properties: Option<&serde_json::Map<String, Value>>,
    ) {
        let known: Vec<&str> = properties
            .into_iter()
            .flatten()
            .map(|(name, _)| name.as_str())
            .collect();
        let suggestion = did_you_mean(&key.text, known.iter().copied());
        if UNSUPPORTED_KEYS.contains(&key.text.as_str()) {
            let hint = "remove it; a later version will support it";
            return self.report_violation(
                key.position,
                format!("`{}` is not supported by this version", key.text),
                Some(hint.into()),
            );
        }
        let hint = suggestion.map_or_else(
            || format!("known here: {}", known.join(", ")),
            |suggestion| format!("did you mean `{suggestion}`?"),
        );
        self.report_violation(
            key.position,
            format!("unknown key `{}`", key.text),
            Some(hint),
        );
    }

    fn check_scalar(&mut self, scalar: &Scalar<'_>, schema: &Value, name: &str) {
        let text = scalar.text;
        if text.contains("${") {
            // The environment substitutes plain scalars only later, so the types check the result.
            if !scalar.is_plain {
                let hint = "remove the quotes; in a list or mapping in braces, write it on a line \
                            of its own";
                self.report_violation(
                    scalar.position,
                    format!("{name}: environment variables are not substituted in quotes"),
                    Some(hint.into()),
                );
            }
            return;
        }
        let allowed = enum_values(schema);
        if !allowed.is_empty() {
            if !allowed.contains(&text) {
                let suggestion = did_you_mean(text, allowed.iter().copied());
                let hint = suggestion.map_or_else(
                    || format!("one of: {}", allowed.join(", ")),
                    |suggestion| {
                        format!(
                            "did you mean `{suggestion}`? one of: {}",
                            allowed.join(", ")
                        )
                    },
                );
                let what = if UNSUPPORTED_VALUES.contains(&text) {
                    "is not supported by this version"
                } else {
                    "is not one of its values"
                };
                self.report_violation(
                    scalar.position,
                    format!("{name}: `{text}` {what}"),
                    Some(hint),
                );
            }
            return;
        }
        let unit = match schema.get("format").and_then(Value::as_str) {
            Some("outrigger-duration") => text.parse::<PolicyDuration>().map(drop),
            Some("outrigger-size") => text.parse::<ByteSize>().map(drop),
            Some("outrigger-timestamp") => text.parse::<Timestamp>().map(drop),
            Some("outrigger-status") => text.parse::<StatusRange>().map(drop),
            _ => return self.check_scalar_type(scalar, schema, name),
        };
        if let Err(invalid) = unit {
            self.report_violation(scalar.position, format!("{name}: {invalid}"), None);
        }
    }

    fn check_scalar_type(&mut self, scalar: &Scalar<'_>, schema: &Value, name: &str) {
        let text = scalar.text;
        let types = schema_types(schema);
        if types.contains(&"string") || (scalar.is_null && types.contains(&"null")) {
            return;
        }
        let number = if scalar.is_plain {
            text.parse::<f64>().ok().filter(|number| number.is_finite())
        } else {
            None
        };
        let (fits, wanted) = if types.contains(&"integer") {
            (
                number.is_some_and(|number| number.fract() == 0.0),
                "a whole number",
            )
        } else if types.contains(&"number") {
            (number.is_some(), "a number")
        } else if types.contains(&"boolean") {
            (matches!(text, "true" | "false"), "true or false")
        } else if schema.get("properties").is_some() || schema.get("additionalProperties").is_some()
        {
            (false, "a mapping")
        } else if schema.get("items").is_some() {
            (false, "a list")
        } else {
            (true, "")
        };
        if !fits {
            return self.report_violation(
                scalar.position,
                format!("{name}: `{text}` is not {wanted}"),
                None,
            );
        }
        let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
        let (low, high) = (bound("minimum"), bound("maximum"));
        if number.is_some_and(|number| {
            low.is_some_and(|low| number < low) || high.is_some_and(|high| number > high)
        }) {
            let range = high.map_or_else(
                || format!("at least {}", low.unwrap_or_default()),
                |high| format!("from {} to {high}", low.unwrap_or_default()),
            );
            self.report_violation(
                scalar.position,
                format!("{name}: {text} is out of range"),
                Some(format!("write a number {range}")),
            );
        }
    }

    fn report_wrong_kind(&mut self, node: &Node, schema: &Value, name: &str, found: &str) {
        let wanted = if schema.get("items").is_some() {
            "a list"
        } else if schema.get("properties").is_some() || schema.get("additionalProperties").is_some()
        {
            "a mapping"
        } else {
            "a single value"
        };
        self.report_violation(
            node.position,
            format!("{name} is {found} and should be {wanted}"),
            None,
        );
    }

    fn report_violation(&mut self, position: Position, message: String, hint: Option<String>) {
        self.violations.push(SchemaViolation {
            position,
            message,
            hint,
        });
    }

    /// Follows references, and selects the alternative of `anyOf` that fits the kind of the node.
    fn resolve(&self, mut schema: &'a Value, node: &Node) -> &'a Value {
        loop {
            if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
                schema = name
                    .strip_prefix("#")
                    .and_then(|pointer| self.root.pointer(pointer))
                    .unwrap_or(&Value::Null);
            } else if let Some(alternatives) = schema.get("anyOf").and_then(Value::as_array) {
                let non_null = alternatives
                    .iter()
                    .filter(|alternative| schema_types(alternative) != ["null"]);
                let resolved: Vec<&Value> = non_null
                    .map(|alternative| self.resolve(alternative, node))
                    .collect();
                let fitting = resolved.iter().find(|alternative| {
                    alternative.get("properties").is_some()
                        == matches!(node.kind, NodeKind::Mapping(_))
                });
                return fitting
                    .or(resolved.first())
                    .copied()
                    .unwrap_or(&Value::Null);
            } else {
                return schema;
            }
        }
    }
}

/// Values of the complete policy format that this version does not support.
const UNSUPPORTED_VALUES: &[&str] = &["ResetConnections", "FailAppLiveness"];

fn schema_types(schema: &Value) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// Returns the values of an enumeration, written as `enum`, `const`, or `oneOf` of those.
fn enum_values(schema: &Value) -> Vec<&str> {
    let own = schema
        .get("enum")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .chain(schema.get("const"));
    let variant_values = schema
        .get("oneOf")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .flat_map(enum_values);
    own.filter_map(Value::as_str)
        .chain(variant_values)
        .collect()
}
