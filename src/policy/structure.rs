//! Checks the shape of a document against the JSON Schema, and reports every fault.
//!
//! A deserializer stops at its first fault; a person who mends a file wants to see all of them. The schema is derived from
//! the types that read the file, so the two cannot disagree for long: what passes here and is still refused by the types is
//! reported by them, one at a time.

use serde_json::Value;

use super::{
    diagnostic::did_you_mean,
    document::NOT_YET,
    tree::{Key, Node, NodeKind, Position},
    units::{Size, Span, StatusRange, Timestamp},
};

/// What is wrong, where, and the mend.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) position: Position,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

/// All faults of shape in a document.
pub(super) fn check(document: &Node, schema: &Value) -> Vec<Fault> {
    let mut check = Check {
        root: schema,
        faults: Vec::new(),
    };
    check.node(document, schema, "the document");
    check.faults
}

struct Check<'a> {
    root: &'a Value,
    faults: Vec<Fault>,
}

impl<'a> Check<'a> {
    fn node(&mut self, node: &Node, schema: &'a Value, name: &str) {
        let schema = self.resolve(schema, node);
        match &node.kind {
            NodeKind::Alias => {}
            NodeKind::Mapping(entries) => self.mapping(node, entries, schema, name),
            NodeKind::Sequence(items) => match schema.get("items") {
                Some(inner) => items.iter().for_each(|item| self.node(item, inner, name)),
                None => self.wrong_kind(node, schema, name, "a list"),
            },
            NodeKind::Scalar { text, is_plain } => self.scalar(node, text, *is_plain, schema, name),
        }
    }

    fn mapping(&mut self, node: &Node, entries: &[(Key, Node)], schema: &'a Value, name: &str) {
        let properties = schema.get("properties").and_then(Value::as_object);
        let additional = schema
            .get("additionalProperties")
            .filter(|value| value.is_object());
        if properties.is_none() && additional.is_none() {
            return self.wrong_kind(node, schema, name, "a mapping");
        }
        for (index, (key, value)) in entries.iter().enumerate() {
            if entries[..index]
                .iter()
                .any(|(earlier, _)| earlier.text == key.text)
            {
                self.fault(
                    key.position,
                    format!("`{}` is given twice", key.text),
                    Some("keep one of the two".into()),
                );
            }
            match properties
                .and_then(|known| known.get(&key.text))
                .or(additional)
            {
                Some(inner) => self.node(value, inner, &format!("`{}`", key.text)),
                None => self.unknown_key(key, properties),
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
            self.fault(
                node.position,
                format!("{name} has no `{missing}`"),
                Some(format!("add `{missing}:`")),
            );
        }
    }

    fn unknown_key(&mut self, key: &Key, properties: Option<&serde_json::Map<String, Value>>) {
        let known: Vec<&str> = properties
            .into_iter()
            .flatten()
            .map(|(name, _)| name.as_str())
            .collect();
        let near = did_you_mean(&key.text, known.iter().copied());
        if NOT_YET.contains(&key.text.as_str()) {
            let hint = "take it out; a later version will read it";
            return self.fault(
                key.position,
                format!("`{}` is not supported by this version", key.text),
                Some(hint.into()),
            );
        }
        let hint = near.map_or_else(
            || format!("known here: {}", known.join(", ")),
            |near| format!("did you mean `{near}`?"),
        );
        self.fault(
            key.position,
            format!("unknown key `{}`", key.text),
            Some(hint),
        );
    }

    fn scalar(&mut self, node: &Node, text: &str, is_plain: bool, schema: &Value, name: &str) {
        if text.contains("${") {
            // What the environment puts into a plain scalar is not known yet; the types will look at it.
            if !is_plain {
                let hint = "take the quotes away; in a list or mapping in braces, write it on a line of its own";
                self.fault(
                    node.position,
                    format!("{name}: the environment is not looked up in quotes"),
                    Some(hint.into()),
                );
            }
            return;
        }
        let allowed = choices(schema);
        if !allowed.is_empty() {
            if !allowed.contains(&text) {
                let near = did_you_mean(text, allowed.iter().copied());
                let hint = near.map_or_else(
                    || format!("one of: {}", allowed.join(", ")),
                    |near| format!("did you mean `{near}`? one of: {}", allowed.join(", ")),
                );
                let what = if NOT_YET_VALUES.contains(&text) {
                    "is not supported by this version"
                } else {
                    "is not one of its values"
                };
                self.fault(
                    node.position,
                    format!("{name}: `{text}` {what}"),
                    Some(hint),
                );
            }
            return;
        }
        let unit = match schema.get("format").and_then(Value::as_str) {
            Some("outrigger-duration") => text.parse::<Span>().map(drop),
            Some("outrigger-size") => text.parse::<Size>().map(drop),
            Some("outrigger-timestamp") => text.parse::<Timestamp>().map(drop),
            Some("outrigger-status") => text.parse::<StatusRange>().map(drop),
            _ => return self.plain_scalar(node, text, is_plain, schema, name),
        };
        if let Err(invalid) = unit {
            self.fault(node.position, format!("{name}: {invalid}"), None);
        }
    }

    fn plain_scalar(
        &mut self,
        node: &Node,
        text: &str,
        is_plain: bool,
        schema: &Value,
        name: &str,
    ) {
        let types = types(schema);
        if types.contains(&"string") || (node.is_null() && types.contains(&"null")) {
            return;
        }
        let number = if is_plain {
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
            return self.fault(
                node.position,
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
            self.fault(
                node.position,
                format!("{name}: {text} is out of range"),
                Some(format!("write a number {range}")),
            );
        }
    }

    fn wrong_kind(&mut self, node: &Node, schema: &Value, name: &str, found: &str) {
        let wanted = if schema.get("items").is_some() {
            "a list"
        } else if schema.get("properties").is_some() || schema.get("additionalProperties").is_some()
        {
            "a mapping"
        } else {
            "a single value"
        };
        self.fault(
            node.position,
            format!("{name} is {found} and should be {wanted}"),
            None,
        );
    }

    fn fault(&mut self, position: Position, message: String, hint: Option<String>) {
        self.faults.push(Fault {
            position,
            message,
            hint,
        });
    }

    /// Follows references, and of alternatives takes the one that has the node's kind.
    fn resolve(&self, mut schema: &'a Value, node: &Node) -> &'a Value {
        loop {
            if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
                schema = name
                    .strip_prefix("#")
                    .and_then(|pointer| self.root.pointer(pointer))
                    .unwrap_or(&Value::Null);
            } else if let Some(alternatives) = schema.get("anyOf").and_then(Value::as_array) {
                let real = alternatives
                    .iter()
                    .filter(|alternative| types(alternative) != ["null"]);
                let resolved: Vec<&Value> = real
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

/// Values of the full format that this version does not build yet.
const NOT_YET_VALUES: &[&str] = &["ResetConnections", "FailAppLiveness"];

fn types(schema: &Value) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// The values of an enumeration: `enum`, `const`, or `oneOf` of those.
fn choices(schema: &Value) -> Vec<&str> {
    let own = schema
        .get("enum")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .chain(schema.get("const"));
    let of_each = schema
        .get("oneOf")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .flat_map(choices);
    own.filter_map(Value::as_str).chain(of_each).collect()
}
