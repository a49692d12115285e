//! The response to a client: relayed from the backend, taken from a fallback, or made by the sidecar.

pub(crate) mod access_record;
mod degradable_failure;
mod duplex;
pub(crate) mod fallback;
pub(crate) mod relay;
mod relayed;
mod stale;
mod stream_shutdown;
pub(crate) mod write_rejection;
