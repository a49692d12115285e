//! `outrigger explain`: shows the route of a request and the policies that apply to it.
//!
//! It evaluates the policy files without a running sidecar. With `--request`, it prints the
//! decisions that a running sidecar made for one request instead. It does not know the state of
//! breakers, limits or endpoints.

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use clap::Args;

use crate::{
    cli::{
        admin_client,
        arguments::{AdminOptions, read_environment},
        output::{CommandOutcome, print_error, print_line},
    },
    clock::Rfc3339,
    policy::{
        self,
        document::Direction,
        matching::RouteMatchInput,
        snapshot::{
            Discovery, FallbackAction, PolicySnapshot, PolicySpec, RouteActionSpec, RouteSpec,
        },
        units::PolicyDuration,
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
        value_name = "DIR"
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
    /// Explains the decisions of a running sidecar for the request with this `x-request-id`
    /// instead.
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
        let (method, url) = (
            self.method.unwrap_or_default(),
            self.url.unwrap_or_default(),
        );
        let loaded = match policy::load(&self.policies, &read_environment()) {
            Ok(loaded) => loaded,
            Err(faults) => {
                print_error(&faults.to_human());
                return CommandOutcome::PolicyRefused;
            }
        };
        let snapshot = loaded.snapshot;
        let rest = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
        let (authority, path) = if rest.starts_with('/') {
            ("", rest)
        } else {
            rest.split_at(rest.find('/').unwrap_or(rest.len()))
        };
        let path = if path.is_empty() { "/" } else { path };
        let path = path.split('?').next().unwrap_or_default();
        let host = authority.split(':').next().unwrap_or_default();
        let headers: Vec<(String, &str)> = self
            .headers
            .iter()
            .filter_map(|header| header.split_once(':'))
            .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim()))
            .collect();
        let header = |name: &str| {
            headers
                .iter()
                .find(|(given, _)| given == name)
                .map(|(_, value)| *value)
        };
        let request = RouteMatchInput {
            host,
            path,
            method: &method,
            header: &header,
        };
        if let Some(unknown) = self.listener.as_ref().filter(|name| {
            !snapshot
                .listeners
                .iter()
                .any(|listener| *listener.name == ***name)
        }) {
            print_error(&format!("there is no listener `{unknown}`"));
            return CommandOutcome::UsageError;
        }
        let listeners = snapshot
            .listeners
            .iter()
            .enumerate()
            .filter(|(_, listener)| {
                self.listener
                    .as_ref()
                    .is_none_or(|name| *listener.name == **name)
            });
        let mut out = String::new();
        for (index, listener) in listeners {
            // Writing to a String cannot fail.
            _ = match snapshot.rules_by_listener[index]
                .iter()
                .find(|rule| rule.matches(&request))
            {
                Some(rule) => writeln!(
                    out,
                    "listener {}: route {}\n{}",
                    listener.name,
                    snapshot.routes[rule.route].name,
                    describe(&snapshot, &snapshot.routes[rule.route])
                ),
                None => writeln!(
                    out,
                    "listener {}: no route, the answer is 404 with reason no_route\n",
                    listener.name
                ),
            };
        }
        print_line(&out);
        CommandOutcome::Success
    }
}

fn describe(snapshot: &PolicySnapshot, route: &RouteSpec) -> String {
    let mut out = String::new();
    if let Err(std::fmt::Error) = describe_into(&mut out, snapshot, route) {
        // Writing to a String cannot fail.
    }
    out
}

fn describe_into(
    out: &mut String,
    snapshot: &PolicySnapshot,
    route: &RouteSpec,
) -> std::fmt::Result {
    if route.direction == Direction::Inbound {
        writeln!(out, "  direction          inbound: callers to the app")?;
    } else {
        writeln!(out, "  direction          outbound: the app to others")?;
    }
    for rule in &route.rate_limits.rules {
        writeln!(
            out,
            "  rate limit         {}: {rule}   (from {})",
            rule.name, route.rate_limits.origin
        )?;
    }
    if let (true, Some(global)) = (
        route.rate_limits.rules.iter().any(|rule| rule.is_global),
        &snapshot.global_rate_limit,
    ) {
        writeln!(out, "  of all instances   {global}")?;
    }
    if let Some(fault) = &route.fault_injection {
        writeln!(
            out,
            "  fault injection    {}, until {}",
            fault.mode.name(),
            Rfc3339(fault.until)
        )?;
        if let Some((delay, share)) = fault.delay {
            let (delay, percent) = (PolicyDuration(delay), share.percent());
            writeln!(out, "                     delays {percent} % by {delay}")?;
        }
        if let Some((status, share)) = fault.abort {
            let percent = share.percent();
            writeln!(out, "                     aborts {percent} % with {status}")?;
        }
    }
    for mirror in &route.mirrors {
        writeln!(
            out,
            "  copies             {} % to {}",
            mirror.share.percent(),
            mirror.backend
        )?;
    }
    if let (Some(protection), Direction::Inbound) = (&snapshot.protection, route.direction) {
        writeln!(
            out,
            "  shed by            {}: {} ({})",
            protection.priority_header,
            protection.priority_classes.join(" > "),
            protection.mode.name()
        )?;
    }
    match &route.action {
        RouteActionSpec::Redirect(redirect) => {
            writeln!(out, "  redirect           {}", redirect.status)
        }
        RouteActionSpec::Forward(destinations) => destinations.iter().try_for_each(|to| {
            let backend = &snapshot.backends[to.backend];
            writeln!(
                out,
                "  backend            {} (weight {}): {} by {}",
                backend.name,
                to.weight,
                describe_endpoints(&backend.discovery),
                backend.load_balancer
            )?;
            describe_policy(out, &to.policy)
        }),
    }
}

fn describe_endpoints(discovery: &Discovery) -> String {
    match discovery {
        Discovery::Static(endpoints) => endpoints
            .iter()
            .map(|endpoint| endpoint.address.to_string())
            .collect::<Vec<_>>()
            .join(", "),
        Discovery::File(path) => format!("those in {}", path.display()),
        Discovery::Dns(dns) => format!("those of {} in DNS", dns.name),
    }
}

fn describe_policy(out: &mut String, policy: &PolicySpec) -> std::fmt::Result {
    let format_duration = |duration: Option<Duration>| {
        duration.map_or_else(
            || "off".to_owned(),
            |duration| PolicyDuration(duration).to_string(),
        )
    };
    let times = &policy.timeouts;
    writeln!(
        out,
        "    timeouts         request {}, backendRequest {}, connect {}, streamIdle {}   (from {})",
        format_duration(times.request),
        format_duration(times.backend_request),
        format_duration(times.connect),
        format_duration(times.stream_idle),
        times.origin
    )?;
    let retry = &policy.retry;
    let codes: Vec<String> = retry.codes.iter().map(|code| code.to_string()).collect();
    writeln!(
        out,
        "    retry            {}, {} attempts after the first, codes [{}], triggers [{}], \
         body kept up to {} bytes   (from {})",
        retry.mode.name(),
        retry.config.attempts,
        codes.join(" "),
        retry.config.triggers,
        retry.max_buffered_body_bytes,
        retry.origin
    )?;
    let budget = &policy.retry_budget;
    writeln!(
        out,
        "    retry budget     {}: {} % of {}, and {} per {}   (from {})",
        budget.name,
        budget.config.share.percent(),
        PolicyDuration(budget.config.interval),
        budget.config.floor,
        PolicyDuration(budget.config.floor_interval),
        budget.origin
    )?;
    match &policy.breaker {
        None => writeln!(out, "    circuit breaker  none")?,
        Some(breaker) => writeln!(
            out,
            "    circuit breaker  {}: {}, scope {}, {}   (from {})",
            breaker.name,
            breaker.mode.name(),
            breaker.scope,
            breaker.config,
            breaker.origin
        )?,
    }
    describe_limits(out, policy)?;
    describe_degradation(out, policy)
}

/// Describes hedging, stale responses and the fallback.
fn describe_degradation(out: &mut String, policy: &PolicySpec) -> std::fmt::Result {
    if let Some(hedging) = &policy.hedging {
        let delay = hedging.config.delay.map_or_else(
            || "as late as one answer in twenty".to_owned(),
            |delay| format!("after {}", PolicyDuration(delay)),
        );
        writeln!(
            out,
            "    hedging          {}: {}, up to {} requests, {delay}   (from {})",
            hedging.name,
            hedging.mode.name(),
            hedging.config.max_attempts,
            hedging.origin
        )?;
    }
    if let Some(stale) = &policy.stale_if_error {
        writeln!(
            out,
            "    stale answers    {}: {}, up to {} old, {} bytes each and {} in all   (from {})",
            stale.name,
            stale.mode.name(),
            PolicyDuration(stale.max_age),
            stale.max_entry_bytes,
            stale.max_bytes,
            stale.origin
        )?;
    }
    let Some(fallback) = &policy.fallback else {
        return Ok(());
    };
    let triggers: Vec<String> = fallback.triggers.iter().map(ToString::to_string).collect();
    let to = match &fallback.action {
        FallbackAction::Response { status, .. } => format!("answers {status}"),
        FallbackAction::Backend(name) => format!("asks {name}"),
    };
    writeln!(
        out,
        "    fallback         {}, {to} on {}   (from {})",
        fallback.mode.name(),
        triggers.join(", "),
        fallback.origin
    )
}

/// Describes the admission control and the connection limits.
fn describe_limits(out: &mut String, policy: &PolicySpec) -> std::fmt::Result {
    if let Some(admission) = &policy.admission_control {
        let config = &admission.config;
        let (min_success_percent, max_rejection_percent) = (
            config.min_success_rate.percent(),
            config.max_rejection.percent(),
        );
        writeln!(
            out,
            "    admission        {}: {}, below {min_success_percent} % good in {} \
             up to {max_rejection_percent} % are rejected, from {} a second   (from {})",
            admission.name,
            admission.mode.name(),
            PolicyDuration(config.window),
            config.min_request_rate,
            admission.origin
        )?;
    }
    match &policy.connection_limits {
        None => writeln!(out, "    limits           none"),
        Some(limits) => writeln!(
            out,
            "    limits           {}: {}, {} in flight{}, {} pending for {}, {} connections \
             ({} to one endpoint), {} retries at once   (from {})",
            limits.name,
            limits.mode.name(),
            limits.concurrency.max_in_flight,
            limits
                .adaptive
                .map_or(String::new(), |(config, mode)| format!(
                    " (between {} and {} by {}, {})",
                    config.min_limit,
                    config.max_limit,
                    config.algorithm,
                    mode.name()
                )),
            limits.concurrency.max_pending,
            PolicyDuration(limits.pending_timeout),
            limits.max_connections,
            limits.max_connections_per_endpoint,
            limits.max_parallel_retries,
            limits.origin
        ),
    }
}
