//! Builds message heads: which header fields are removed, which are added, and which are
//! forwarded.
//!
//! The modules do not read or write connections.

pub(crate) mod hop_by_hop;
pub(crate) mod lifecycle;
pub(crate) mod rate_limit;
pub(crate) mod request;
pub(crate) mod response;

/// Entry in `via` for a message that arrived over HTTP/1.
const VIA: &str = "1.1 outrigger";

/// Entry in `via` for a message that arrived over HTTP/2.
const VIA_HTTP2: &str = "2 outrigger";

/// Value of `connection` in a message that changes the protocol.
const UPGRADE: &str = "upgrade";

/// Value of `transfer-encoding` for a body of unknown length.
const CHUNKED: &str = "chunked";
