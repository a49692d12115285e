//! Writes fields as the lines of an HTTP/1 message.

use std::ops::Range;

use crate::message::headers::{Headers, field::Field};

impl Headers {
    /// Appends the fields as lines of HTTP/1, without the empty line that ends a head.
    ///
    /// Neighbouring lines that are already in this form are copied at once.
    pub fn write_http1(&self, out: &mut Vec<u8>) {
        let mut run = 0..0;
        for field in &self.fields {
            match self.exact_line(field) {
                Some(line) if line.start == run.end && line.start != self.received.len() => {
                    run.end = line.end;
                }
                line => {
                    out.extend_from_slice(self.bytes(run));
                    run = line.unwrap_or_else(|| {
                        self.write_line(field, out);
                        0..0
                    });
                }
            }
        }
        out.extend_from_slice(self.bytes(run));
    }

    /// Returns the position of the line of a field, if it has the form `name: value CRLF`.
    fn exact_line(&self, field: &Field) -> Option<Range<usize>> {
        let (name, value) = (field.name.range(), field.value.range());
        let line = name.start..value.end + 2;
        if name.start >= self.received.len() {
            return Some(line);
        }
        let is_exact = name.end + 2 == value.start
            && self.received.get(name.end..value.start) == Some(b": ")
            && self.received.get(value.end..line.end) == Some(b"\r\n");
        is_exact.then_some(line)
    }

    fn write_line(&self, field: &Field, out: &mut Vec<u8>) {
        out.extend_from_slice(self.text(field.name));
        out.extend_from_slice(b": ");
        out.extend_from_slice(self.text(field.value));
        out.extend_from_slice(b"\r\n");
    }
}
