//! Asking the app its own probes, for whoever probes it through the admin server.
//!
//! However many ask, the app is asked one thing once at a time, and what it said is given again for a moment: whoever asks all the time costs the app
//! nothing, and keeps nobody's probe waiting.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{sync::oneshot, task::JoinSet};

use super::probing;
use crate::{
    clock,
    state::{State, command::AppAnswer},
};

/// How long an answer is given again.
const FRESH: Duration = Duration::from_millis(500);

/// Who may wait for one answer at once.
const MAX_WAITING: usize = 256;

/// What is asked: a path, or only whether it takes connections.
type Probe = Option<Arc<str>>;

type Said = Result<AppAnswer, String>;

/// The probes that are out, and what was said last. There are as many as the policy has paths.
#[derive(Debug)]
pub(super) struct AppProbes {
    state: Arc<State>,
    last: HashMap<Probe, (Instant, Said)>,
    waiting: HashMap<Probe, Vec<oneshot::Sender<Said>>>,
    calls: JoinSet<(Probe, Said)>,
}

impl AppProbes {
    /// None is out.
    pub(super) fn new(state: Arc<State>) -> Self {
        Self {
            state,
            last: HashMap::new(),
            waiting: HashMap::new(),
            calls: JoinSet::new(),
        }
    }

    /// Asks, or waits for what is asked already; who is one too many is told by the end of `reply`.
    pub(super) fn ask(&mut self, backend: Arc<str>, probe: Probe, reply: oneshot::Sender<Said>) {
        let now = clock::now();
        self.last
            .retain(|_, (at, _)| now.saturating_duration_since(*at) < FRESH);
        if let Some((_, said)) = self.last.get(&probe) {
            // Whoever asked may have left.
            _ = reply.send(said.clone());
            return;
        }
        let waiting = self.waiting.entry(probe.clone()).or_default();
        if waiting.is_empty() {
            let state = self.state.clone();
            self.calls.spawn(async move {
                let said = ask(&state, &backend, probe.as_deref()).await;
                (probe, said)
            });
        }
        if waiting.len() < MAX_WAITING {
            waiting.push(reply);
        }
    }

    /// Waits for an answer, and gives it to all who wait for it; for ever, if none is out. Can be dropped and begun again at any time.
    pub(super) async fn answer(&mut self) {
        // A call that panicked has said so; who waits for it is told when this ends.
        let Some(Ok((probe, said))) = self.calls.join_next().await else {
            return std::future::pending().await;
        };
        for reply in self.waiting.remove(&probe).into_iter().flatten() {
            // Whoever asked may have left.
            _ = reply.send(said.clone());
        }
        self.last.insert(probe, (clock::now(), said));
    }
}

async fn ask(state: &State, backend: &str, path: Option<&str>) -> Said {
    let live = state.live.load_full();
    let app = live
        .backends
        .iter()
        .find(|known| *known.spec.name == *backend)
        .ok_or("the policies have changed")?;
    let endpoint = app.endpoints.first().ok_or("it has no endpoint")?;
    let check = app.spec.check.as_ref().ok_or("it has no active check")?;
    let way = probing::Way::to(&app.spec);
    let host = check.host().unwrap_or(endpoint.authority());
    let asked = async {
        let Some(path) = path else {
            return probing::connect(state, endpoint, &way)
                .await
                .map(|()| AppAnswer {
                    status: 200,
                    body: Bytes::from_static(b"connected\n"),
                });
        };
        let answer = probing::get(state, endpoint, &way, path, host, probing::MAX_BODY).await?;
        Ok(AppAnswer {
            status: answer.status,
            body: answer.body,
        })
    };
    clock::within(Some(check.timeout), asked)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {:?}", check.timeout)))
}
