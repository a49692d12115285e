//! Asking the app its own probes, for whoever probes it through the admin server.

use std::sync::Arc;

use bytes::Bytes;

use super::probing;
use crate::{
    clock,
    state::{State, command::AppAnswer},
};

/// Asks the app a path, or only connects to it; what it says, or why it says nothing.
pub(super) async fn ask(state: Arc<State>, backend: Arc<str>, path: Option<Arc<str>>) -> Result<AppAnswer, String> {
    let live = state.live.load_full();
    let app = live.backends.iter().find(|known| known.spec.name == backend).ok_or("the policies have changed")?;
    let endpoint = app.endpoints.first().ok_or("it has no endpoint")?;
    let check = app.spec.check.as_ref().ok_or("it has no active check")?;
    let way = probing::Way::to(&app.spec);
    let host = check.host().unwrap_or(endpoint.authority());
    let asked = async {
        let Some(path) = path else {
            return probing::connect(&state, endpoint, &way).await.map(|()| AppAnswer { status: 200, body: Bytes::from_static(b"connected\n") });
        };
        let answer = probing::get(&state, endpoint, &way, &path, host, probing::MAX_BODY).await?;
        Ok(AppAnswer { status: answer.status, body: answer.body })
    };
    clock::within(Some(check.timeout), asked).await.unwrap_or_else(|_| Err(format!("no answer within {:?}", check.timeout)))
}
