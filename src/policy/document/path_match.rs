//! The path condition of a route or a rate limit.

use schemars::JsonSchema;
use serde::Deserialize;

/// Condition on the path of a request.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathMatch {
    /// How the path is compared. Default PathPrefix.
    #[serde(rename = "type", default)]
    pub kind: PathMatchType,
    /// Path with a leading `/`, or a regular expression.
    pub value: String,
}

/// How a path is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum PathMatchType {
    /// The path equals the value.
    Exact,
    /// The first segments of the path equal the value: `/v1` is a prefix of `/v1/a`, but not of
    /// `/v10`.
    #[default]
    PathPrefix,
    /// The regular expression matches the whole path. The syntax is RE2 without look-around.
    RegularExpression,
}
