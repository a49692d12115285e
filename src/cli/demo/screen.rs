//! The output of the demo: an introduction, each event, and one status line.
//!
//! On a terminal, the status line is updated in place. Otherwise it is printed every five seconds.

use std::{
    io::{IsTerminal as _, Write as _},
    net::SocketAddr,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use tokio::sync::broadcast;

use crate::{
    cli::demo::{app::DemoFault, load::DemoLoad},
    clock,
    state::State,
    telemetry::{EventRecord, event::Event, label::Label},
};

/// Writes the output of the demo to standard output.
pub(super) struct Screen {
    state: Arc<State>,
    events: broadcast::Receiver<EventRecord>,
    began: Instant,
    is_terminal: bool,
    last_plain_second: u64,
}

impl Screen {
    pub(super) fn new(state: Arc<State>) -> Self {
        Self {
            events: state.telemetry.subscribe(),
            state,
            began: clock::now(),
            is_terminal: std::io::stdout().is_terminal(),
            last_plain_second: 0,
        }
    }

    pub(super) fn print_introduction(&self, addresses: &DemoAddresses, policies: &Path) {
        let DemoAddresses {
            app,
            inbound,
            outbound,
            admin,
        } = addresses;
        let policies = policies.display();
        print(&format!(
            "Outrigger demo: clients -> sidecar {inbound} -> app {app}, with the policies of \
             {policies}\n\n\
             Try, in another terminal:\n\
             \x20 rate limit  for i in $(seq 30); do curl -s -o /dev/null -w '%{{http_code}} ' \
             -H 'x-api-key: me' http://{inbound}/; done; echo\n\
             \x20 breaker     curl -X POST http://{app}/fault/errors   # then watch; \
             end it with /fault/none\n\
             \x20             curl -i http://{inbound}/                # the rejection states \
             the reason and `retry-after`\n\
             \x20 retry       curl -i http://{outbound}/flaky          # the app fails every other \
             time; the client does not see it\n\
             \x20 reload      edit {policies}, and see it here; an invalid file changes \
             nothing, and the errors state their location\n\
             \x20 probes      curl 'http://{admin}/readyz?verbose'; curl http://{admin}/metrics; \
             curl http://{admin}/api/v1/breakers\n\n\
             Ctrl-C ends it.\n"
        ));
    }

    /// Prints an announcement of the scenario.
    pub(super) fn print_announcement(&mut self, text: &str) {
        self.print_line(&format!("** {text}"));
    }

    /// Prints the events since the last call, and updates the status line if there is a load.
    pub(super) fn draw(&mut self, load: Option<&DemoLoad>, fault: DemoFault) {
        while let Ok(event) = self.events.try_recv() {
            if !matches!(*event.event, Event::AdminActed { .. }) {
                self.print_line(&event.event.to_string());
            }
        }
        let breakers = self.state.active_policy.load();
        let breaker = breakers
            .breakers
            .iter()
            .find(|breaker| **breaker.name() == *"app");
        let state = breaker.map_or("none", |breaker| {
            breaker.snapshot(clock::now()).0.state.label()
        });
        let Some(load) = load else { return };
        let [succeeded, failed, rejected] = [
            &load.counters.succeeded,
            &load.counters.failed,
            &load.counters.rejected,
        ]
        .map(|count| count.load(Ordering::Relaxed));
        let millis = load.counters.last_micros.load(Ordering::Relaxed) / 1_000;
        let line = format!(
            "app {:<6}  breaker {state:<9}  succeeded {succeeded}  failed {failed}  \
             rejected {rejected}  last response in {millis} ms",
            fault.name()
        );
        let second = clock::now().saturating_duration_since(self.began).as_secs();
        if self.is_terminal {
            write_raw(&format!("\r\x1b[2K[{second:>3} s] {line}"));
        } else if second >= self.last_plain_second + 5 {
            self.last_plain_second = second;
            print(&format!("[{second:>3} s] {line}"));
        }
    }

    /// Ends the status line, so that the shell prompt starts on a new line.
    pub(super) fn finish(&self) {
        if self.is_terminal {
            print("");
        }
    }

    fn print_line(&self, text: &str) {
        let seconds = clock::now().saturating_duration_since(self.began).as_secs();
        let clear = if self.is_terminal { "\r\x1b[2K" } else { "" };
        print(&format!("{clear}[{seconds:>3} s] {text}"));
    }
}

/// Addresses of the demo: the app, the listeners of the sidecar, and its admin server.
#[derive(Debug, Clone, Copy)]
pub(super) struct DemoAddresses {
    pub(super) app: SocketAddr,
    pub(super) inbound: SocketAddr,
    pub(super) outbound: SocketAddr,
    pub(super) admin: SocketAddr,
}

fn print(text: &str) {
    write_raw(&format!("{text}\n"));
}

fn write_raw(text: &str) {
    let mut out = std::io::stdout().lock();
    // If the write fails, the reader has closed the pipe and needs no more output.
    _ = out.write_all(text.as_bytes());
    _ = out.flush();
}
