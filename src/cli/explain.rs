//! `outrigger explain`: shows the route of a request and the policies that apply to it.
//!
//! It evaluates the policy files without a running sidecar. With `--request`, it prints the
//! decisions that a running sidecar made for one request instead. It does not know the state of
//! breakers, limits or endpoints.

use std::{fmt::Write as _, path::PathBuf};

use clap::Args;

use crate::{
    cli::{
        admin_client,
        arguments::{AdminOptions, read_environment},
        output::{CommandOutcome, print_error, print_line},
    },
    policy::{
        self,
        document::Direction,
        matching::RouteMatchInput,
        sections::PolicySpec,
        sections::{
            fault_injection::FaultInjection, rate_limit::RateLimitSection, section::Section,
        },
        snapshot::{ListenerSpec, PolicySnapshot, RouteActionSpec, RouteSpec},
    },
};

/// The request to explain, and the policies that apply to it.
#[derive(Debug, Args)]
pub(super) struct ExplainCommand {
    /// Policy directory, or one policy file.
    #[arg(
        long,
        env = "OUTRIGGER_POLICIES",
        default_value = "policies",
        value_name = "PATH"
    )]
    policies: PathBuf,
    /// Listener that receives the request. Without it, all listeners are shown.
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// HTTP method of the request.
    #[arg(required_unless_present = "request")]
    method: Option<String>,
    /// URL like `http://pay.shop/v1/charges`, or only a path.
    #[arg(required_unless_present = "request")]
    url: Option<String>,
    /// Shows the decisions that a running sidecar made for the request with this `x-request-id`,
    /// instead of the policies.
    #[arg(long, value_name = "ID", conflicts_with_all = ["method", "url", "headers", "listener"])]
    request: Option<String>,
    #[command(flatten)]
    admin: AdminOptions,
    /// Header of the request, like `x-tenant: a`.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
}

impl ExplainCommand {
    pub(super) fn run(self) -> CommandOutcome {
        if let Some(request) = &self.request {
            return admin_client::explain_request(&self.admin, request);
        }
        let snapshot = match policy::load(&self.policies, &read_environment()) {
            Ok(loaded) => loaded.snapshot,
            Err(faults) => {
                print_error(&faults.to_human());
                return CommandOutcome::PolicyRefused;
            }
        };
        let is_selected = |listener: &ListenerSpec| {
            let name = self.listener.as_ref();
            name.is_none_or(|name| *listener.name == **name)
        };
        if let Some(unknown) = &self.listener
            && !snapshot.listeners.iter().any(is_selected)
        {
            print_error(&format!("there is no listener `{unknown}`"));
            return CommandOutcome::UsageError;
        }
        let headers: Vec<(String, &str)> = self
            .headers
            .iter()
            .filter_map(|header| header.split_once(':'))
            .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim()))
            .collect();
        let header = |name: &str| {
            let mut values = headers.iter().filter(|(given, _)| given == name);
            values.next().map(|(_, value)| *value)
        };
        let (host, path) = host_and_path(self.url.as_deref().unwrap_or_default());
        let request = RouteMatchInput {
            host,
            path,
            method: self.method.as_deref().unwrap_or_default(),
            header: &header,
        };
        let mut out = String::new();
        let listeners = snapshot.listeners.iter().zip(&snapshot.route_tables);
        for (listener, table) in listeners.filter(|(listener, _)| is_selected(listener)) {
            let name = &listener.name;
            // Writing to a String cannot fail.
            _ = match table.find(&request) {
                Some(rule) => {
                    let route = &snapshot.routes[rule.route];
                    _ = writeln!(out, "listener {name}: route {}", route.name);
                    describe_route(&mut out, &snapshot, route).and_then(|()| writeln!(out))
                }
                None => writeln!(
                    out,
                    "listener {name}: no route; the response is 404 with the reason no_route\n"
                ),
            };
        }
        print_line(&out);
        CommandOutcome::Success
    }
}

/// Returns the host without its port, and the path without its query, of a URL or a path.
fn host_and_path(url: &str) -> (&str, &str) {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (authority, path) = if rest.starts_with('/') {
        ("", rest)
    } else {
        rest.split_at(rest.find('/').unwrap_or(rest.len()))
    };
    let path = if path.is_empty() { "/" } else { path };
    (
        authority.split(':').next().unwrap_or_default(),
        path.split('?').next().unwrap_or_default(),
    )
}

fn describe_route(
    out: &mut String,
    snapshot: &PolicySnapshot,
    route: &RouteSpec,
) -> std::fmt::Result {
    let direction = match route.direction {
        Direction::Inbound => "Inbound: from clients to the app",
        Direction::Outbound => "Outbound: from the app to other services",
    };
    writeln!(out, "  direction          {direction}")?;
    for line in RateLimitSection::describe(&route.rate_limits) {
        writeln!(out, "  {:<19}{line}", RateLimitSection::KEY)?;
    }
    if let (true, Some(global)) = (
        route.rate_limits.rules.iter().any(|rule| rule.is_global),
        &snapshot.global_rate_limit,
    ) {
        writeln!(out, "  globalRateLimit    {global}")?;
    }
    for line in FaultInjection::describe(&route.fault_injection) {
        writeln!(out, "  {:<19}{line}", FaultInjection::KEY)?;
    }
    for mirror in &route.mirrors {
        writeln!(out, "  mirror             {mirror}")?;
    }
    if let (Some(protection), Direction::Inbound) = (&snapshot.protection, route.direction) {
        writeln!(
            out,
            "  protection         {}: {} ({})",
            protection.priority_header,
            protection.priority_classes.join(" > "),
            protection.mode.name()
        )?;
    }
    describe_action(out, snapshot, &route.action)
}

fn describe_action(
    out: &mut String,
    snapshot: &PolicySnapshot,
    action: &RouteActionSpec,
) -> std::fmt::Result {
    let destinations = match action {
        RouteActionSpec::Redirect(redirect) => {
            return writeln!(out, "  redirect           {}", redirect.status);
        }
        RouteActionSpec::Forward(destinations) => destinations,
    };
    for destination in destinations {
        let backend = &snapshot.backends[destination.backend];
        writeln!(
            out,
            "  backend            {} (weight {}): endpoints {}, {}",
            backend.name, destination.weight, backend.discovery, backend.load_balancer
        )?;
        describe_policy(out, &destination.policy)?;
    }
    Ok(())
}

fn describe_policy(out: &mut String, policy: &PolicySpec) -> std::fmt::Result {
    let mut absent = Vec::new();
    for (key, lines) in policy.describe() {
        if lines.is_empty() {
            absent.push(key);
        }
        for line in lines {
            writeln!(out, "    {key:<17}{line}")?;
        }
    }
    if absent.is_empty() {
        return Ok(());
    }
    writeln!(out, "    {:<17}{}", "off or absent", absent.join(", "))
}
