//! Messages of HTTP/1 (RFC 9112), read strictly.
//!
//! Two parsers on the path of a message must never disagree about where it ends. Everything that
//! is not exactly as the grammar defines it is therefore an error, and nothing is repaired. The
//! modules do no I/O and know neither clients nor backends.

pub(crate) mod body_reader;
pub(crate) mod body_writer;
mod chunk_decoder;
pub(crate) mod head;

/// Error for bytes that are no valid HTTP/1 message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InvalidMessage;
