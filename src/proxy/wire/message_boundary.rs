//! Finds the positions at which a response stream can end without splitting a message.
//!
//! A draining instance closes long streams between two WebSocket frames, gRPC messages or
//! server-sent events. This module only counts the forwarded bytes; it neither delays nor
//! changes them. It does not decide when a stream ends, and does not check the content.

/// Framing of a response stream, with the position within the current message.
#[derive(Debug)]
pub(crate) enum MessageFraming {
    /// WebSocket frames (RFC 6455 section 5.2), as a server sends them.
    WebSocket(LengthPrefixedFraming),
    /// gRPC messages, each after a flag byte and four bytes of length.
    Grpc(LengthPrefixedFraming),
    /// Server-sent events, each of which ends with an empty line.
    EventStream(EventStreamFraming),
}

impl MessageFraming {
    /// Creates the state at the start of a WebSocket stream.
    pub(crate) fn websocket() -> Self {
        Self::WebSocket(LengthPrefixedFraming::default())
    }

    /// Creates the state at the start of a gRPC response.
    pub(crate) fn grpc() -> Self {
        Self::Grpc(LengthPrefixedFraming::default())
    }

    /// Creates the state at the start of an event stream.
    pub(crate) fn event_stream() -> Self {
        Self::EventStream(EventStreamFraming {
            is_line_empty: true,
            is_after_cr: false,
            is_at_boundary: true,
        })
    }

    /// Advances the position by bytes that are forwarded. They can be any part of the stream.
    pub(crate) fn observe(&mut self, bytes: &[u8]) {
        match self {
            Self::WebSocket(framed) => framed.observe(bytes, parse_websocket_header),
            Self::Grpc(framed) => framed.observe(bytes, parse_grpc_header),
            Self::EventStream(lines) => bytes.iter().for_each(|byte| lines.observe_byte(*byte)),
        }
    }

    /// Returns whether the stream can end here without splitting a message. It can at its
    /// start.
    pub(crate) fn is_at_boundary(&self) -> bool {
        match self {
            Self::WebSocket(framed) | Self::Grpc(framed) => {
                framed.partial_header.is_empty() && framed.remaining_body_bytes == 0
            }
            Self::EventStream(lines) => lines.is_at_boundary,
        }
    }

    /// Returns the number of frames or messages that have started; 0 for event streams.
    pub(crate) fn started_messages(&self) -> u64 {
        match self {
            Self::WebSocket(framed) | Self::Grpc(framed) => framed.started_messages,
            Self::EventStream(_) => 0,
        }
    }
}

/// Position in a stream of messages, each after a header that states its length.
#[derive(Debug, Default)]
pub(crate) struct LengthPrefixedFraming {
    /// Bytes of the current header, until it is complete.
    partial_header: Vec<u8>,
    /// Bytes of the current message body that are still to arrive.
    remaining_body_bytes: u64,
    /// Number of messages of which at least one byte has arrived.
    started_messages: u64,
}

impl LengthPrefixedFraming {
    /// Advances the position. `parse_header` returns the body length, or `None` for an
    /// incomplete header.
    fn observe(&mut self, mut bytes: &[u8], parse_header: fn(&[u8]) -> Option<u64>) {
        while !bytes.is_empty() {
            let body = usize::try_from(self.remaining_body_bytes)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            self.remaining_body_bytes -= body as u64;
            bytes = &bytes[body..];
            while !bytes.is_empty() && self.remaining_body_bytes == 0 {
                self.started_messages += u64::from(self.partial_header.is_empty());
                self.partial_header.push(bytes[0]);
                bytes = &bytes[1..];
                if let Some(length) = parse_header(&self.partial_header) {
                    self.remaining_body_bytes = length;
                    self.partial_header.clear();
                }
            }
        }
    }
}

/// Parses the five bytes before a gRPC message (gRPC over HTTP/2, "Length-Prefixed-Message").
///
/// Returns the length of the message in bytes, or `None` if the header is incomplete.
fn parse_grpc_header(head: &[u8]) -> Option<u64> {
    let length: [u8; 4] = head.get(1..5)?.try_into().ok()?;
    Some(u32::from_be_bytes(length).into())
}

/// Parses a frame header (RFC 6455 section 5.2): the length has 7, 16 or 64 bits, and a mask of
/// four bytes can follow.
///
/// Returns the length of the payload in bytes, or `None` if the header is incomplete.
fn parse_websocket_header(head: &[u8]) -> Option<u64> {
    let second = *head.get(1)?;
    let extended_length_bytes = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mask_bytes = if second & 0x80 == 0 { 0 } else { 4 };
    if head.len() < 2 + extended_length_bytes + mask_bytes {
        return None;
    }
    let length = head[2..2 + extended_length_bytes]
        .iter()
        .fold(0, |length, byte| length << 8 | u64::from(*byte));
    Some(if extended_length_bytes == 0 {
        (second & 0x7f).into()
    } else {
        length
    })
}

/// Position in a stream of lines, and whether its last complete line is empty.
#[derive(Debug)]
pub(crate) struct EventStreamFraming {
    /// Whether the current line has no byte so far.
    is_line_empty: bool,
    /// Whether the last byte is CR, so that a LF belongs to the same line end.
    is_after_cr: bool,
    /// Whether the last byte ends an empty line.
    is_at_boundary: bool,
}

impl EventStreamFraming {
    /// Advances by one byte. A line ends with CR, LF or both (WHATWG HTML, "parsing an event
    /// stream").
    fn observe_byte(&mut self, byte: u8) {
        let is_lf_of_crlf = byte == b'\n' && self.is_after_cr;
        self.is_after_cr = byte == b'\r';
        if is_lf_of_crlf {
            return;
        }
        let ends_line = matches!(byte, b'\r' | b'\n');
        self.is_at_boundary = ends_line && self.is_line_empty;
        self.is_line_empty = ends_line;
    }
}

#[cfg(test)]
mod tests;
