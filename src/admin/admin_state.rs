//! What the handlers of the admin server share.

use std::sync::Arc;

use crate::state::State;

/// State of the admin server, which each handler receives.
#[derive(Clone)]
pub(super) struct AdminState {
    /// State of this instance.
    pub(super) state: Arc<State>,
    /// Bearer token that authorizes changes from other hosts; `None` permits none.
    pub(super) token: Option<Arc<str>>,
}
