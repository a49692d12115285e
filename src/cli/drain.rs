//! `outrigger drain`: drains a running sidecar and reports whether the other replicas can take
//! over its load.
//!
//! The sidecar decides when it has drained and whether the capacity suffices; this command
//! waits and prints. It does not end the process of the sidecar.

use std::{thread, time::Duration};

use clap::Args;
use serde_json::Value;

use crate::{
    cli::{
        admin_client,
        arguments::AdminOptions,
        output::{CommandOutcome, print_error, print_line},
    },
    state::instance::command::NO_APP_RESPONSE,
};

/// Interval between two checks of the app; longer than the 500 ms for which the sidecar caches
/// the result.
const APP_CHECK_INTERVAL: Duration = Duration::from_millis(600);

/// Consecutive failed checks after which the app counts as ended. A single connection may fail
/// for other reasons.
const APP_GONE_THRESHOLD: u32 = 3;

/// Polls of [`admin_client::POLL_INTERVAL`] between two lines of progress.
const POLLS_PER_PROGRESS_LINE: u32 = 5;

/// Drains a running sidecar.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
pub(super) struct DrainCommand {
    #[command(flatten)]
    admin: AdminOptions,
    /// Returns at once instead of waiting until the sidecar has drained.
    #[arg(long)]
    no_wait: bool,
    /// After the drain, also waits until the app accepts no more connections. This is for
    /// clusters without native sidecars, where the sidecar must receive SIGTERM after the app
    /// has ended. Needs `lifecycle.startup.requireBackend`.
    #[arg(long, conflicts_with = "no_wait")]
    until_app_ends: bool,
    /// Drains only if the other replicas have enough capacity. Otherwise, or if that is
    /// unknown, exits with code 1. Needs `lifecycle.replicas`, and `connectionLimits` on the
    /// inbound routes.
    #[arg(long)]
    require_capacity: bool,
    /// Drains even if `--require-capacity` would prevent it.
    #[arg(long, requires = "require_capacity")]
    force: bool,
}

impl DrainCommand {
    pub(super) fn run(self) -> CommandOutcome {
        let is_required = self.require_capacity && !self.force;
        let path = if is_required {
            "/api/v1/drain?requireCapacity=true"
        } else {
            "/api/v1/drain"
        };
        let Some((status, body)) = admin_client::send_request(&self.admin, "POST", path) else {
            return CommandOutcome::Unavailable;
        };
        let response: Value = serde_json::from_str(&body).unwrap_or_default();
        match status {
            200..=299 => print_line(&describe_capacity(&response["capacity"])),
            409 => {
                print_error(&format!(
                    "{}\nnot drained, because of --require-capacity; add --force to drain in any \
                     case",
                    describe_capacity(&response["capacity"])
                ));
                return CommandOutcome::Negative;
            }
            _ => return admin_client::report_refusal(status, &body),
        }
        if self.no_wait {
            CommandOutcome::Success
        } else {
            self.wait_until_drained()
        }
    }

    /// Waits until the sidecar reports that it has drained, and prints the progress once a second.
    fn wait_until_drained(self) -> CommandOutcome {
        let admin = self.admin.clone();
        let waiting =
            thread::spawn(move || admin_client::try_send_request(&admin, "GET", "/drained", None));
        for poll in 1_u32.. {
            if waiting.is_finished() {
                break;
            }
            if let Err(outcome) = admin_client::pause(admin_client::POLL_INTERVAL) {
                return outcome;
            }
            if poll % POLLS_PER_PROGRESS_LINE == 0 {
                self.print_progress();
            }
        }
        match waiting.join() {
            Ok(Ok((200, _))) => {
                print_line("drained");
                if self.until_app_ends {
                    self.wait_until_app_ends()
                } else {
                    CommandOutcome::Success
                }
            }
            Ok(Err(error)) => {
                print_error(&format!(
                    "the sidecar ended before it reported the end of the drain: {error}"
                ));
                CommandOutcome::Unavailable
            }
            Ok(Ok((_, body))) => {
                print_error(&body);
                CommandOutcome::Unavailable
            }
            Err(_) => CommandOutcome::InternalError,
        }
    }

    /// Waits until several consecutive connections to the app have failed.
    fn wait_until_app_ends(&self) -> CommandOutcome {
        let mut consecutive_failures = 0;
        loop {
            match admin_client::try_send_request(
                &self.admin,
                "GET",
                "/app-health/connect",
                Some(admin_client::RESPONSE_TIMEOUT),
            ) {
                Ok((200, _)) => consecutive_failures = 0,
                Ok((503, reason)) if reason.starts_with(NO_APP_RESPONSE) => {
                    consecutive_failures += 1
                }
                Ok((_, reason)) => {
                    print_error(&reason);
                    return CommandOutcome::UsageError;
                }
                // The sidecar ended before the app did.
                Err(_) => return CommandOutcome::Unavailable,
            }
            if consecutive_failures == APP_GONE_THRESHOLD {
                print_line("the app has ended");
                return CommandOutcome::Success;
            }
            if let Err(outcome) = admin_client::pause(APP_CHECK_INTERVAL) {
                return outcome;
            }
        }
    }

    fn print_progress(&self) {
        let status = admin_client::try_send_request(
            &self.admin,
            "GET",
            "/api/v1/status",
            Some(admin_client::RESPONSE_TIMEOUT),
        );
        let status: Value = status
            .ok()
            .and_then(|(_, body)| serde_json::from_str(&body).ok())
            .unwrap_or_default();
        if let (Some(stage), Some(in_flight)) = (
            status["lifecycle"].as_str(),
            status["in_flight_inbound"].as_u64(),
        ) {
            print_error(&format!(
                "{stage}, {in_flight} inbound requests are in flight"
            ));
        }
    }
}

/// Describes the load here and the expected load on the other replicas, in one line.
fn describe_capacity(capacity: &Value) -> String {
    let number = |key: &str| capacity[key].as_f64().unwrap_or_default();
    let here = format!(
        "this instance has at most {:.0} requests in flight and {:.0} requests per second",
        number("peak_in_flight"),
        number("requests_per_second")
    );
    let limit = capacity["limit"].as_u64().map_or_else(
        || "no limit is known".to_owned(),
        |limit| format!("limit {limit}"),
    );
    let rate_limit = capacity["requests_per_second_limit_each"]
        .as_f64()
        .map_or_else(String::new, |rate| format!(" (limit about {rate:.0})"));
    let remaining = format!(
        "{} replicas remain, with {:.0} % of the capacity",
        capacity["replicas_staying"],
        number("staying_percent")
    );
    let each = format!(
        "each replica would have {:.0} in flight ({limit}) and {:.0} requests per \
         second{rate_limit}",
        number("in_flight_each"),
        number("requests_per_second_each")
    );
    match capacity["verdict"].as_str().unwrap_or_default() {
        "enough" => {
            format!("the other replicas have enough capacity: {remaining}; {here}; {each}")
        }
        "too_little" => {
            format!("the other replicas do not have enough capacity: {remaining}; {here}; {each}")
        }
        "unknown_limit" => format!(
            "it is unknown whether the other replicas have enough capacity: {remaining}; {here}; \
             {each}; add `connectionLimits` to the inbound routes"
        ),
        "alone" => format!("no other replica is available; {here}"),
        _ => format!(
            "the other replicas are unknown: set `lifecycle.replicas` to the backend that \
             lists them; {here}"
        ),
    }
}
