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

use crate::{
    clock,
    control::health::active_checks,
    state::{State, instance::command::AppProbeResponse},
};

/// How long an answer is given again.
const CACHE_TTL: Duration = Duration::from_millis(500);

/// Who may wait for one answer at once.
const MAX_WAITERS: usize = 256;

/// What is asked: a path, or only whether it takes connections.
type AppProbePath = Option<Arc<str>>;

type AppProbeResult = Result<AppProbeResponse, String>;

/// The probes that are out, and what was said last. There are as many as the policy has paths.
#[derive(Debug)]
pub(crate) struct AppProbeCache {
    state: Arc<State>,
    cached: HashMap<AppProbePath, (Instant, AppProbeResult)>,
    waiters: HashMap<AppProbePath, Vec<oneshot::Sender<AppProbeResult>>>,
    calls: JoinSet<(AppProbePath, AppProbeResult)>,
}

impl AppProbeCache {
    /// None is out.
    pub(crate) fn new(state: Arc<State>) -> Self {
        Self {
            state,
            cached: HashMap::new(),
            waiters: HashMap::new(),
            calls: JoinSet::new(),
        }
    }

    /// Asks, or waits for what is asked already; who is one too many is told by the end of `reply`.
    pub(crate) fn send_probe(
        &mut self,
        backend: Arc<str>,
        probe: AppProbePath,
        reply: oneshot::Sender<AppProbeResult>,
    ) {
        let now = clock::now();
        self.cached
            .retain(|_, (at, _)| now.saturating_duration_since(*at) < CACHE_TTL);
        if let Some((_, result)) = self.cached.get(&probe) {
            // Whoever asked may have left.
            _ = reply.send(result.clone());
            return;
        }
        let waiters = self.waiters.entry(probe.clone()).or_default();
        if waiters.is_empty() {
            let state = self.state.clone();
            self.calls.spawn(async move {
                let result = probe_app(&state, &backend, probe.as_deref()).await;
                (probe, result)
            });
        }
        if waiters.len() < MAX_WAITERS {
            waiters.push(reply);
        }
    }

    /// Waits for an answer, and gives it to all who wait for it; for ever, if none is out. Can be dropped and begun again at any time.
    pub(crate) async fn publish_next_result(&mut self) {
        // A call that panicked has said so; who waits for it is told when this ends.
        let Some(Ok((probe, result))) = self.calls.join_next().await else {
            return std::future::pending().await;
        };
        for reply in self.waiters.remove(&probe).into_iter().flatten() {
            // Whoever asked may have left.
            _ = reply.send(result.clone());
        }
        self.cached.insert(probe, (clock::now(), result));
    }
}

async fn probe_app(state: &State, backend: &str, path: Option<&str>) -> AppProbeResult {
    let active_policy = state.active_policy.load_full();
    let app = active_policy
        .backends
        .iter()
        .find(|known| *known.spec.name == *backend)
        .ok_or("the policies have changed")?;
    let endpoint = app.endpoints.first().ok_or("it has no endpoint")?;
    let check = app
        .spec
        .active_check
        .as_ref()
        .ok_or("it has no active check")?;
    let transport = active_checks::ProbeTransport::from_backend(&app.spec);
    let host = check.host().unwrap_or(endpoint.authority());
    let call = async {
        let Some(path) = path else {
            return active_checks::check_tcp_connect(state, endpoint, &transport)
                .await
                .map(|()| AppProbeResponse {
                    status: 200,
                    body: Bytes::from_static(b"connected\n"),
                });
        };
        let response = active_checks::send_get(
            state,
            endpoint,
            &transport,
            path,
            host,
            active_checks::MAX_CHECK_BODY_BYTES,
        )
        .await?;
        Ok(AppProbeResponse {
            status: response.status,
            body: response.body,
        })
    };
    clock::timeout(Some(check.timeout), call)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {:?}", check.timeout)))
}
