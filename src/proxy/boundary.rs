//! Where a stream of an answer may end without cutting anything apart: between two frames, messages or events.
//!
//! Nothing is held back and nothing is changed; only the lengths are followed.

/// What is passed on, as far as its parts can be told apart.
#[derive(Debug)]
pub(super) enum Parts {
    /// Frames of a WebSocket (RFC 6455 section 5.2), as a server sends them.
    WebSocket(Framed),
    /// Messages of gRPC: a flag and four bytes of length before each.
    Grpc(Framed),
    /// Server-sent events: lines, and an empty one after each event.
    Events(Lines),
}

impl Parts {
    /// Nothing has come yet of a WebSocket.
    pub(super) fn websocket() -> Self {
        Self::WebSocket(Framed::default())
    }

    /// Nothing has come yet of a call of gRPC.
    pub(super) fn grpc() -> Self {
        Self::Grpc(Framed::default())
    }

    /// Nothing has come yet of a stream of events.
    pub(super) fn events() -> Self {
        Self::Events(Lines {
            is_line_empty: true,
            has_cr: false,
            is_between: true,
        })
    }

    /// Follows what is passed on.
    pub(super) fn note(&mut self, bytes: &[u8]) {
        match self {
            Self::WebSocket(framed) => framed.note(bytes, websocket_lengths),
            Self::Grpc(framed) => framed.note(bytes, grpc_lengths),
            Self::Events(lines) => bytes.iter().for_each(|byte| lines.note(*byte)),
        }
    }

    /// Whether it may end here.
    pub(super) fn is_between(&self) -> bool {
        match self {
            Self::WebSocket(framed) | Self::Grpc(framed) => {
                framed.head.is_empty() && framed.left == 0
            }
            Self::Events(lines) => lines.is_between,
        }
    }

    /// How many frames or messages have begun.
    pub(super) fn count(&self) -> u64 {
        match self {
            Self::WebSocket(framed) | Self::Grpc(framed) => framed.count,
            Self::Events(_) => 0,
        }
    }
}

/// Parts with a head that says how long they are.
#[derive(Debug, Default)]
pub(super) struct Framed {
    /// The head of the part that has begun, as long as it is not complete.
    head: Vec<u8>,
    /// What is to come of its body.
    left: u64,
    count: u64,
}

impl Framed {
    /// `lengths` reads a head: the length of the body, or how long the head is at least.
    fn note(&mut self, mut bytes: &[u8], lengths: fn(&[u8]) -> Result<u64, usize>) {
        while !bytes.is_empty() {
            let body = usize::try_from(self.left)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            self.left -= body as u64;
            bytes = &bytes[body..];
            while !bytes.is_empty() && self.left == 0 {
                self.count += u64::from(self.head.is_empty());
                self.head.push(bytes[0]);
                bytes = &bytes[1..];
                if let Ok(length) = lengths(&self.head) {
                    self.left = length;
                    self.head.clear();
                }
            }
        }
    }
}

fn grpc_lengths(head: &[u8]) -> Result<u64, usize> {
    let length: [u8; 4] = head
        .get(1..5)
        .and_then(|length| length.try_into().ok())
        .ok_or(5_usize)?;
    Ok(u32::from_be_bytes(length).into())
}

fn websocket_lengths(head: &[u8]) -> Result<u64, usize> {
    let second = *head.get(1).ok_or(2_usize)?;
    let wide = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    if head.len() < 2 + wide + mask {
        return Err(2 + wide + mask);
    }
    let length = head[2..2 + wide]
        .iter()
        .fold(0, |length, byte| length << 8 | u64::from(*byte));
    Ok(if wide == 0 {
        (second & 0x7f).into()
    } else {
        length
    })
}

/// Lines, and whether an empty one was the last.
#[derive(Debug)]
pub(super) struct Lines {
    is_line_empty: bool,
    has_cr: bool,
    is_between: bool,
}

impl Lines {
    /// A line ends with CR, LF or both (WHATWG HTML, "parsing an event stream").
    fn note(&mut self, byte: u8) {
        let is_second_half = byte == b'\n' && self.has_cr;
        self.has_cr = byte == b'\r';
        if is_second_half {
            return;
        }
        let ends_line = matches!(byte, b'\r' | b'\n');
        self.is_between = ends_line && self.is_line_empty;
        self.is_line_empty = ends_line;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After how many bytes it may end, however the bytes are cut into pieces.
    #[track_caller]
    fn check(make: fn() -> Parts, bytes: &[u8], expected: &[usize]) {
        for piece in [1, 2, 3, 7, bytes.len()] {
            let mut parts = make();
            let mut ends = Vec::new();
            let mut passed = 0;
            for chunk in bytes.chunks(piece) {
                parts.note(chunk);
                passed += chunk.len();
                if parts.is_between() {
                    ends.push(passed);
                }
            }
            let reachable: Vec<usize> = expected
                .iter()
                .copied()
                .filter(|end| end % piece == 0 || *end == bytes.len())
                .collect();
            assert_eq!(ends, reachable, "in pieces of {piece}");
        }
    }

    #[test]
    fn frames_of_a_websocket_are_told_apart() {
        let mut bytes = vec![0x81, 5];
        bytes.extend(b"hello");
        bytes.extend([0x82, 0x85, 1, 2, 3, 4]);
        bytes.extend(b"world");
        bytes.extend([0x89, 0]);
        bytes.extend([0x82, 126, 1, 0]);
        bytes.extend([0x55; 256]);
        bytes.extend([0x82, 127, 0, 0, 0, 0, 0, 1, 0, 1]);
        bytes.extend(vec![0xaa; 65_537]);
        let ends = [7, 18, 20, 280, 65_827];
        check(Parts::websocket, &bytes, &ends);
    }

    #[test]
    fn messages_of_grpc_are_told_apart_and_counted() {
        let bytes = [0, 0, 0, 0, 2, 8, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 9];
        check(Parts::grpc, &bytes, &[7, 12, 18]);
        let mut parts = Parts::grpc();
        parts.note(&bytes[..14]);
        assert_eq!((parts.count(), parts.is_between()), (3, false));
    }

    #[test]
    fn events_end_with_an_empty_line_however_lines_end() {
        check(Parts::events, b"data: a\n\ndata: b\ndata: c\n\n", &[9, 26]);
        check(
            Parts::events,
            b"data: a\r\n\r\n: x\r\n\r\n",
            &[10, 11, 17, 18],
        );
        check(Parts::events, b"data: a\r\rid: 1\r\r", &[9, 16]);
        assert!(Parts::events().is_between(), "nothing has begun");
    }
}
