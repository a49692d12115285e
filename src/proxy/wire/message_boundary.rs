//! Where a stream of an answer may end without cutting anything apart: between two frames, messages or events.
//!
//! Nothing is held back and nothing is changed; only the lengths are followed.

/// What is passed on, as far as its parts can be told apart.
#[derive(Debug)]
pub(crate) enum MessageFraming {
    /// Frames of a WebSocket (RFC 6455 section 5.2), as a server sends them.
    WebSocket(LengthPrefixedFraming),
    /// Messages of gRPC: a flag and four bytes of length before each.
    Grpc(LengthPrefixedFraming),
    /// Server-sent events: lines, and an empty one after each event.
    EventStream(EventStreamFraming),
}

impl MessageFraming {
    /// Nothing has come yet of a WebSocket.
    pub(crate) fn websocket() -> Self {
        Self::WebSocket(LengthPrefixedFraming::default())
    }

    /// Nothing has come yet of a call of gRPC.
    pub(crate) fn grpc() -> Self {
        Self::Grpc(LengthPrefixedFraming::default())
    }

    /// Nothing has come yet of a stream of events.
    pub(crate) fn event_stream() -> Self {
        Self::EventStream(EventStreamFraming {
            is_line_empty: true,
            is_after_cr: false,
            is_at_boundary: true,
        })
    }

    /// Follows what is passed on.
    pub(crate) fn observe(&mut self, bytes: &[u8]) {
        match self {
            Self::WebSocket(framed) => framed.observe(bytes, parse_websocket_header),
            Self::Grpc(framed) => framed.observe(bytes, parse_grpc_header),
            Self::EventStream(lines) => bytes.iter().for_each(|byte| lines.observe_byte(*byte)),
        }
    }

    /// Whether it may end here.
    pub(crate) fn is_at_boundary(&self) -> bool {
        match self {
            Self::WebSocket(framed) | Self::Grpc(framed) => {
                framed.partial_header.is_empty() && framed.remaining_body_bytes == 0
            }
            Self::EventStream(lines) => lines.is_at_boundary,
        }
    }

    /// How many frames or messages have begun.
    pub(crate) fn started_messages(&self) -> u64 {
        match self {
            Self::WebSocket(framed) | Self::Grpc(framed) => framed.started_messages,
            Self::EventStream(_) => 0,
        }
    }
}

/// Parts with a head that says how long they are.
#[derive(Debug, Default)]
pub(crate) struct LengthPrefixedFraming {
    /// The head of the part that has begun, as long as it is not complete.
    partial_header: Vec<u8>,
    /// What is to come of its body.
    remaining_body_bytes: u64,
    started_messages: u64,
}

impl LengthPrefixedFraming {
    /// `lengths` reads a head: the length of the body, or how long the head is at least.
    fn observe(&mut self, mut bytes: &[u8], parse_header: fn(&[u8]) -> Result<u64, usize>) {
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
                if let Ok(length) = parse_header(&self.partial_header) {
                    self.remaining_body_bytes = length;
                    self.partial_header.clear();
                }
            }
        }
    }
}

fn parse_grpc_header(head: &[u8]) -> Result<u64, usize> {
    let length: [u8; 4] = head
        .get(1..5)
        .and_then(|length| length.try_into().ok())
        .ok_or(5_usize)?;
    Ok(u32::from_be_bytes(length).into())
}

fn parse_websocket_header(head: &[u8]) -> Result<u64, usize> {
    let second = *head.get(1).ok_or(2_usize)?;
    let extended_length_bytes = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mask_bytes = if second & 0x80 == 0 { 0 } else { 4 };
    if head.len() < 2 + extended_length_bytes + mask_bytes {
        return Err(2 + extended_length_bytes + mask_bytes);
    }
    let length = head[2..2 + extended_length_bytes]
        .iter()
        .fold(0, |length, byte| length << 8 | u64::from(*byte));
    Ok(if extended_length_bytes == 0 {
        (second & 0x7f).into()
    } else {
        length
    })
}

/// Lines, and whether an empty one was the last.
#[derive(Debug)]
pub(crate) struct EventStreamFraming {
    is_line_empty: bool,
    is_after_cr: bool,
    is_at_boundary: bool,
}

impl EventStreamFraming {
    /// A line ends with CR, LF or both (WHATWG HTML, "parsing an event stream").
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
