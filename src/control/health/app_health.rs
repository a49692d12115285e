//! Relays app probes: requests to the admin server that check the app itself.
//!
//! This module decides how often the app is probed. Concurrent probes of the same path share
//! one request, and its result is cached for a short time. Clients that probe continuously
//! therefore cause little load on the app and do not delay the probes of others. The module
//! does not know who sends a probe, and it does not affect readiness.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{sync::oneshot, task::JoinSet};

use crate::{
    clock,
    control::health::probe_transport::{MAX_CHECK_BODY_BYTES, ProbeRequest, ProbeTransport},
    state::{State, instance::command::AppProbeResponse},
};

/// Time for which a probe result is cached.
const CACHE_TTL: Duration = Duration::from_millis(500);

/// Maximum number of concurrent clients that wait for one probe. Further ones are rejected.
const MAX_WAITERS: usize = 256;

/// Path of a probe; `None` only checks whether the app accepts connections.
type AppProbePath = Option<Arc<str>>;

type AppProbeResult = Result<AppProbeResponse, String>;

/// Pending probes and cached results. The number of entries is bounded by the number of probe
/// paths in the policy.
#[derive(Debug)]
pub(in crate::control) struct AppProbeCache {
    state: Arc<State>,
    cached: HashMap<AppProbePath, (Instant, AppProbeResult)>,
    waiters: HashMap<AppProbePath, Vec<oneshot::Sender<AppProbeResult>>>,
    calls: JoinSet<(AppProbePath, AppProbeResult)>,
}

impl AppProbeCache {
    /// Creates an empty cache.
    pub(in crate::control) fn new(state: Arc<State>) -> Self {
        Self {
            state,
            cached: HashMap::new(),
            waiters: HashMap::new(),
            calls: JoinSet::new(),
        }
    }

    /// Responds from the cache, joins a pending probe, or sends a new one. If too many clients
    /// wait already, `reply` is dropped.
    pub(in crate::control) fn send_probe(
        &mut self,
        backend: Arc<str>,
        probe: AppProbePath,
        reply: oneshot::Sender<AppProbeResult>,
    ) {
        let now = clock::now();
        self.cached
            .retain(|_, (at, _)| now.saturating_duration_since(*at) < CACHE_TTL);
        if let Some((_, result)) = self.cached.get(&probe) {
            // The requester may have disconnected; its receiver is then closed.
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

    /// Waits for the next probe result, sends it to all waiting clients and caches it. Stays
    /// pending while no probe runs.
    ///
    /// Cancel safe: the caller can drop the future and call again.
    pub(in crate::control) async fn publish_next_result(&mut self) {
        // The panic hook has already reported a panic in a probe. The waiting clients get no
        // response before this cache is dropped.
        let Some(Ok((probe, result))) = self.calls.join_next().await else {
            return std::future::pending().await;
        };
        for reply in self.waiters.remove(&probe).into_iter().flatten() {
            // The requester may have disconnected; its receiver is then closed.
            _ = reply.send(result.clone());
        }
        self.cached.insert(probe, (clock::now(), result));
    }
}

async fn probe_app(state: &State, backend: &str, path: Option<&str>) -> AppProbeResult {
    let active_policy = state.active_policy.load_full();
    let app = active_policy
        .find_backend(backend)
        .ok_or("the policies have changed")?;
    let endpoint = app.endpoints.first().ok_or("it has no endpoint")?;
    let check = app
        .spec
        .active_check
        .as_ref()
        .ok_or("it has no active check")?;
    let transport = ProbeTransport::from_backend(&app.spec);
    let host = check.host().unwrap_or(endpoint.authority());
    let call = async {
        let Some(path) = path else {
            return transport
                .check_connect(state, endpoint)
                .await
                .map(|()| AppProbeResponse {
                    status: 200,
                    body: Bytes::from_static(b"connected\n"),
                });
        };
        let response = transport
            .send_get(
                state,
                endpoint,
                ProbeRequest {
                    path,
                    host,
                    max_body_bytes: MAX_CHECK_BODY_BYTES,
                },
            )
            .await?;
        Ok(AppProbeResponse {
            status: response.status,
            body: response.body,
        })
    };
    clock::timeout(Some(check.timeout), call)
        .await
        .unwrap_or_else(|_| Err(format!("no response within {:?}", check.timeout)))
}
