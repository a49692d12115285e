//! Writes fields as the lines of an HTTP/1 message.

use crate::message::headers::{Field, Headers};

impl Headers {
    /// Appends the fields as lines of HTTP/1, without the empty line that ends a head.
    ///
    /// Neighbouring lines that are already in this form are copied at once.
    pub fn write_http1(&self, out: &mut Vec<u8>) {
        let mut run = 0..0;
        for field in &self.fields {
            match self.received_line(*field) {
                Some((start, end)) if start == run.end => run.end = end,
                line => {
                    out.extend_from_slice(&self.received[run]);
                    run = line.map_or(0..0, |(start, end)| start..end);
                    if line.is_none() {
                        self.write_line(*field, out);
                    }
                }
            }
        }
        out.extend_from_slice(&self.received[run]);
    }

    /// Returns the start and the end of the line of a field in the received bytes, if the line
    /// has the form `name: value CRLF`.
    fn received_line(&self, field: Field) -> Option<(usize, usize)> {
        let (name, value) = (field.name.range(), field.value.range());
        let is_exact = name.end + 2 == value.start
            && self.received.get(name.end..value.start) == Some(b": ")
            && self.received.get(value.end..value.end + 2) == Some(b"\r\n");
        is_exact.then_some((name.start, value.end + 2))
    }

    fn write_line(&self, field: Field, out: &mut Vec<u8>) {
        out.extend_from_slice(self.text(field.name));
        out.extend_from_slice(b": ");
        out.extend_from_slice(self.text(field.value));
        out.extend_from_slice(b"\r\n");
    }
}
