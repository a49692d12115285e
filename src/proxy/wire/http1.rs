//! Messages of HTTP/1 (RFC 9112), read strictly.
//!
//! Two parsers on the path of a message must never disagree about where it ends. Everything that
//! is not exactly as the grammar defines it is therefore an error, and nothing is repaired. The
//! modules do no I/O and know neither clients nor backends.

pub(crate) mod body_reader;
pub(crate) mod body_writer;
mod chunk_decoder;
pub(crate) mod head;

use http::{Version, header};

use crate::{message::headers::Headers, proxy::wire::list_field::lists_token};

/// Error for bytes that are no valid HTTP/1 message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InvalidMessage;

/// Returns whether the sender of a message permits another message on its connection (RFC 9112
/// section 9.3).
pub(crate) fn is_persistent(version: Version, headers: &Headers) -> bool {
    let has_option = |option| lists_token(headers, &header::CONNECTION, option);
    !has_option("close") && (version == Version::HTTP_11 || has_option("keep-alive"))
}
