//! Asking the app its own probes, for whoever probes it through the admin server.

use std::sync::Arc;

use super::probing;
use crate::{
    clock,
    state::{State, command::AppAnswer},
};

/// Asks the app a path; what it says, or why it says nothing.
pub(super) async fn ask(state: Arc<State>, backend: usize, path: Arc<str>) -> Result<AppAnswer, String> {
    let live = state.live.load_full();
    let app = live.backends.get(backend).ok_or("the policies have changed")?;
    let endpoint = app.endpoints.first().ok_or("it has no endpoint")?;
    let check = app.spec.check.as_ref().ok_or("it has no active check")?;
    let way = probing::Way::to(&app.spec);
    let host = check.host().unwrap_or(endpoint.authority());
    let asked = probing::get(&state, endpoint, &way, &path, host, probing::MAX_BODY);
    let answer = clock::within(Some(check.timeout), asked).await.unwrap_or_else(|_| Err(format!("no answer within {:?}", check.timeout)))?;
    Ok(AppAnswer { status: answer.status, body: answer.body })
}
