//! Routes: which requests are sent to which backend, and what protects them.
//!
//! The keys follow the Gateway API's HTTPRoute. `matching` applies the precedence of routes.

use std::fmt;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::policy::{
    document::tls::AllowedIdentities,
    path_match::PathMatch,
    sections::{
        Sections, fallback::AuxiliaryBackendRef, fault_injection::FaultInjection, with_sections,
    },
    units::Percent,
};

/// Adds a field for each section to the fields of a route, because an error in a flattened
/// struct would have no position.
macro_rules! define_route_entry {
    (
        destination { $($(#[$doc:meta])* $name:ident: $section:ty,)* }
        route { $($(#[$route_doc:meta])* $route_name:ident: $route_section:ty,)* }
    ) => {
        /// Requests that match, the backends that receive them, and the sections that protect them.
        #[derive(Debug, Clone, Deserialize, JsonSchema)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        pub struct RouteEntry {
            /// Name of the route, unique among routes.
            pub name: String,
            /// Listeners whose requests the route applies to, at least one. All have the same
            /// direction.
            pub listeners: Vec<String>,
            /// Host names, exact or with a wildcard like `*.shop`, without a port. Default any
            /// host.
            #[serde(default)]
            pub hostnames: Vec<String>,
            /// Sets of conditions. A request matches if one set matches. Default any request.
            #[serde(default)]
            pub matches: Vec<RouteMatch>,
            /// Changes to the request and the response. Only RequestMirror may occur more than
            /// once.
            #[serde(default)]
            pub filters: Vec<Filter>,
            /// Backends that receive the requests, by weight. Only a route with a RequestRedirect
            /// filter has none.
            #[serde(default)]
            pub backend_refs: Vec<BackendRef>,
            /// Clients that may use the route, by the identity in their certificate. Default all
            /// clients.
            pub allow: Option<AllowedIdentities>,
            /// Name of the policy whose sections apply, unless the route itself sets them.
            pub policy: Option<String>,
            $($(#[$doc])* pub $name: Option<$section>,)*
            $($(#[$route_doc])* pub $route_name: Option<$route_section>,)*
            /// Deliberate delays and errors for tests.
            pub fault_injection: Option<FaultInjection>,
        }

        impl RouteEntry {
            /// Returns the protective sections that the route itself sets.
            #[must_use]
            pub fn sections(&self) -> Sections {
                Sections {
                    $($name: self.$name.clone(),)*
                    $($route_name: self.$route_name.clone(),)*
                }
            }
        }
    };
}
with_sections!(define_route_entry);

/// Conditions on a request. All conditions that are set must match.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RouteMatch {
    /// Condition on the path, without the query. Default any path.
    pub path: Option<PathMatch>,
    /// Method in capitals, like `GET`. Default any method.
    pub method: Option<String>,
    /// Conditions on request headers, all of which must match.
    pub headers: Vec<HeaderMatch>,
}

/// Condition on a request header.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderMatch {
    /// How the value is compared. Default Exact.
    #[serde(rename = "type", default)]
    pub kind: HeaderMatchType,
    /// Name of the header, in any case.
    pub name: String,
    /// Value to compare with, or a regular expression.
    pub value: String,
}

/// How the value of a header is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum HeaderMatchType {
    /// The value of the header equals the value that is set.
    #[default]
    Exact,
    /// The regular expression matches the whole value of the header.
    RegularExpression,
}

/// Backend of a route, with its weight.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendRef {
    /// Name of the backend.
    pub name: String,
    /// Share of the requests relative to the other backends of the route. 0 sends none; at
    /// least one weight is above 0. Default 1.
    pub weight: Option<u32>,
}

/// Change to the request or the response. Only the field that belongs to `type` is set.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Filter {
    /// Type of the change.
    #[serde(rename = "type")]
    pub kind: FilterType,
    /// Changes to the headers of the request. Required with RequestHeaderModifier.
    pub request_header_modifier: Option<HeaderModifier>,
    /// Changes to the headers of the response. Required with ResponseHeaderModifier.
    pub response_header_modifier: Option<HeaderModifier>,
    /// New host or path of the request. Required with URLRewrite.
    pub url_rewrite: Option<UrlRewrite>,
    /// Redirect that the client receives. Required with RequestRedirect.
    pub request_redirect: Option<Redirect>,
    /// Backend that receives copies of requests. Required with RequestMirror.
    pub request_mirror: Option<RequestMirror>,
}

/// Type of a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum FilterType {
    /// Changes headers of the request.
    RequestHeaderModifier,
    /// Changes headers of the response.
    ResponseHeaderModifier,
    /// Changes the host and the path of the request.
    URLRewrite,
    /// Responds with a redirect. The route then has no backends, no sections and no other
    /// filters.
    RequestRedirect,
    /// Sends a copy of the request to another backend.
    RequestMirror,
}

/// Writes the name that policies use.
impl fmt::Display for FilterType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RequestHeaderModifier => "RequestHeaderModifier",
            Self::ResponseHeaderModifier => "ResponseHeaderModifier",
            Self::URLRewrite => "URLRewrite",
            Self::RequestRedirect => "RequestRedirect",
            Self::RequestMirror => "RequestMirror",
        })
    }
}

/// Sends copies of some requests to another backend. The copies do not delay the request, and
/// their responses are discarded.
///
/// A request is not copied if its body exceeds `retry.maxBufferedBody`, or if its response
/// starts before the body is complete. Upgrades are not copied. At most 128 copies per route
/// and mirror backend are in flight, each for at most one minute.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestMirror {
    /// Backend that receives the copies, under its own policy.
    pub backend_ref: AuxiliaryBackendRef,
    /// Share of the requests that is copied, in percent. Default 100.
    pub percent: Option<Percent>,
}

/// Changes to headers. `remove` is applied first, then `set`, then `add`.
///
/// The proxy writes `host`, `connection`, `content-length` and other hop-by-hop headers itself,
/// so they cannot be changed.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HeaderModifier {
    /// Headers that replace all headers of the same name.
    pub set: Vec<HttpHeader>,
    /// Headers that are added to those of the same name.
    pub add: Vec<HttpHeader>,
    /// Names of headers that are removed.
    pub remove: Vec<String>,
}

/// Name and value of a header.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpHeader {
    /// Name of the header, in any case.
    pub name: String,
    /// Value of the header, one line of visible characters.
    pub value: String,
}

/// New host and new path of a request.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct UrlRewrite {
    /// Host that the backend receives, with a port if needed. Default the host of the request.
    pub hostname: Option<String>,
    /// Change of the path. Default the path of the request.
    pub path: Option<PathRewrite>,
}

/// Change of the path of a request. Only the field that belongs to `type` is set.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathRewrite {
    /// Part of the path that is replaced.
    #[serde(rename = "type")]
    pub kind: PathRewriteType,
    /// New path, with a leading `/`. Required with ReplaceFullPath.
    pub replace_full_path: Option<String>,
    /// New prefix, with a leading `/`. Required with ReplacePrefixMatch. Every match of the
    /// route needs a path of type PathPrefix.
    pub replace_prefix_match: Option<String>,
}

/// Part of a path that is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum PathRewriteType {
    /// The whole path is replaced. The query remains.
    ReplaceFullPath,
    /// The prefix that matched is replaced. The rest of the path and the query remain.
    ReplacePrefixMatch,
}

/// Redirect that a client receives. The parts that are not set are those of the request, except
/// the port.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Redirect {
    /// Scheme of the new location, `http` or `https`. Default the scheme of the request.
    pub scheme: Option<String>,
    /// Host of the new location. Default the host of the request.
    pub hostname: Option<String>,
    /// Port of the new location. By default, the location has no port.
    pub port: Option<u16>,
    /// Status of the response: 301, 302, 303, 307 or 308. Default 302.
    pub status_code: Option<u16>,
    /// Path of the new location. Default the path of the request.
    pub path: Option<PathRewrite>,
}
