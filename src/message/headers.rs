//! The fields of a message head, or its trailers, as a flat list in the order of the message.
//!
//! The fields that were received stay in the buffer that they arrived in; a list of positions
//! refers to them. Fields that the proxy adds are appended to a second buffer. Nothing is hashed
//! or allocated per field. A lookup compares names one after another, but most names that the
//! proxy looks for are absent, and a filter of 64 bits says so at once.
//!
//! Names keep the case in which they arrived, and are compared without it (RFC 9110 section 5.1).

mod header_map;
mod http1_lines;

use std::fmt;

use bytes::Bytes;

/// Number of fields that the proxy adds to a message at most, besides those of filters. It sizes
/// copied lists.
const MAX_ADDED_FIELDS: usize = 12;

/// Expected size of the fields that the proxy adds, in bytes.
const ADDED_BYTES: usize = 256;

/// Maximum number of decimal digits of a number.
const MAX_DIGITS: usize = 20;

/// Fields of a message head, or its trailers. All names and values are valid in HTTP/1.
#[derive(Clone, Default)]
pub struct Headers {
    received: Bytes,
    added: Vec<u8>,
    fields: Vec<Field>,
    /// Has the bit of each name that is or was in the list (`name_bit`).
    name_bits: u64,
}

/// Position of a text. Texts in `added` start behind the end of `received`.
#[derive(Debug, Clone, Copy, Default)]
struct Span {
    start: u32,
    length: u32,
}

#[derive(Debug, Clone, Copy)]
struct Field {
    name: Span,
    value: Span,
}

/// Error for fields that exceed what a list can hold: 4 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

impl Headers {
    /// Creates the list of the fields in a buffer. Each pair is the start and length of a name,
    /// and of a value. Names must be tokens, and values valid in HTTP/1.
    ///
    /// # Errors
    /// If a position exceeds 4 GiB.
    pub fn from_received(
        received: Bytes,
        positions: impl ExactSizeIterator<Item = ((usize, usize), (usize, usize))>,
    ) -> Result<Self, TooLong> {
        let mut headers = Self {
            fields: Vec::with_capacity(positions.len()),
            ..Self::default()
        };
        for (name, value) in positions {
            let (start, length) = name;
            headers.name_bits |= name_bit(&received[start..start + length]);
            headers.fields.push(Field {
                name: Span::new(start, length)?,
                value: Span::new(value.0, value.1)?,
            });
        }
        headers.received = received;
        Ok(headers)
    }

    /// Returns the number of fields.
    #[must_use]
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// Returns whether there is no field.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// Returns the value of the first field with a name.
    pub fn get(&self, name: impl AsRef<str>) -> Option<&[u8]> {
        let position = self.position(name.as_ref().as_bytes())?;
        Some(self.text(self.fields[position].value))
    }

    /// Returns the value of the first field with a name, if it consists of visible ASCII
    /// characters, blanks and tabs.
    pub fn get_str(&self, name: impl AsRef<str>) -> Option<&str> {
        self.get(name).and_then(as_text)
    }

    /// Returns the values of all fields with a name, in order.
    pub fn get_all(&self, name: impl AsRef<str>) -> impl DoubleEndedIterator<Item = &[u8]> {
        let first = self.position(name.as_ref().as_bytes());
        let fields = &self.fields[first.unwrap_or(self.fields.len())..];
        // The received name lives as long as the list, in contrast to `name`.
        let name = first.map_or(Span::default(), |first| self.fields[first].name);
        let named = fields
            .iter()
            .filter(move |field| self.is_name(field.name, self.text(name)));
        named.map(|field| self.text(field.value))
    }

    /// Returns whether there is a field with a name.
    pub fn contains_key(&self, name: impl AsRef<str>) -> bool {
        self.position(name.as_ref().as_bytes()).is_some()
    }

    /// Returns the names and values of all fields, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let fields = self.fields.iter();
        fields.map(|field| {
            // A name is a token, which is ASCII.
            let name = std::str::from_utf8(self.text(field.name)).unwrap_or_default();
            (name, self.text(field.value))
        })
    }

    /// Replaces all fields with a name by one, in the place of the first, or appends it.
    pub fn insert(&mut self, name: impl AsRef<str>, value: impl AsRef<[u8]>) {
        let name = name.as_ref();
        let Some(position) = self.position(name.as_bytes()) else {
            return self.append(name, value);
        };
        let value = self.add_text(value.as_ref());
        self.fields[position].value = value;
        self.remove_from(position + 1, name.as_bytes());
    }

    /// Replaces all fields with a name by one with a number, or appends it.
    pub fn insert_number(&mut self, name: impl AsRef<str>, number: u64) {
        self.insert(name, decimal(number, &mut [0; MAX_DIGITS]));
    }

    /// Appends a field with a number.
    pub fn append_number(&mut self, name: impl AsRef<str>, number: u64) {
        self.append(name, decimal(number, &mut [0; MAX_DIGITS]));
    }

    /// Appends a field.
    pub fn append(&mut self, name: impl AsRef<str>, value: impl AsRef<[u8]>) {
        let name = name.as_ref().as_bytes();
        self.name_bits |= name_bit(name);
        let field = Field {
            name: self.add_text(name),
            value: self.add_text(value.as_ref()),
        };
        self.fields.push(field);
    }

    /// Removes all fields with a name.
    pub fn remove(&mut self, name: impl AsRef<str>) {
        let name = name.as_ref().as_bytes();
        if let Some(position) = self.position(name) {
            self.remove_from(position, name);
        }
    }

    /// Copies the fields whose name satisfies a predicate, with capacity for those that the proxy
    /// adds.
    #[must_use]
    pub fn filtered(&self, mut is_kept: impl FnMut(&[u8]) -> bool) -> Self {
        let mut fields = Vec::with_capacity(self.fields.len() + MAX_ADDED_FIELDS);
        let kept = self
            .fields
            .iter()
            .filter(|field| is_kept(self.text(field.name)));
        fields.extend(kept);
        let mut added = Vec::with_capacity(self.added.len() + ADDED_BYTES);
        added.extend_from_slice(&self.added);
        Self {
            received: self.received.clone(),
            added,
            fields,
            name_bits: self.name_bits,
        }
    }

    /// Copies the fields out of the buffer that they arrived in, which a slice would keep
    /// allocated.
    #[must_use]
    pub fn to_compact(&self) -> Self {
        let size = self.size_bytes();
        let mut compact = Self {
            added: Vec::with_capacity(size),
            fields: Vec::with_capacity(self.len()),
            ..Self::default()
        };
        for (name, value) in self.iter() {
            compact.append(name, value);
        }
        compact
    }

    /// Returns the size of all names and values, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.iter()
            .map(|(name, value)| name.len() + value.len())
            .sum()
    }

    fn position(&self, name: &[u8]) -> Option<usize> {
        if self.name_bits & name_bit(name) == 0 {
            return None;
        }
        self.fields
            .iter()
            .position(|field| self.is_name(field.name, name))
    }

    fn is_name(&self, span: Span, name: &[u8]) -> bool {
        span.length as usize == name.len() && self.text(span).eq_ignore_ascii_case(name)
    }

    /// Removes the fields with a name from a position on.
    fn remove_from(&mut self, position: usize, name: &[u8]) {
        for index in (position..self.fields.len()).rev() {
            if self.is_name(self.fields[index].name, name) {
                self.fields.remove(index);
            }
        }
    }

    fn text(&self, span: Span) -> &[u8] {
        let range = span.range();
        match range.start.checked_sub(self.received.len()) {
            None => &self.received[range],
            Some(start) => &self.added[start..start + range.len()],
        }
    }

    fn add_text(&mut self, text: &[u8]) -> Span {
        let start = self.received.len() + self.added.len();
        // What the proxy adds is far below 4 GiB; a longer value would be lost.
        let Ok(span) = Span::new(start, text.len()) else {
            return Span::default();
        };
        self.added.extend_from_slice(text);
        span
    }
}

impl Span {
    fn new(start: usize, length: usize) -> Result<Self, TooLong> {
        // The end must fit as well.
        u32::try_from(start + length).map_err(|_| TooLong)?;
        Ok(Self {
            start: u32::try_from(start).map_err(|_| TooLong)?,
            length: u32::try_from(length).map_err(|_| TooLong)?,
        })
    }

    fn range(self) -> std::ops::Range<usize> {
        let start = self.start as usize;
        start..start + self.length as usize
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = self.iter();
        f.debug_list()
            .entries(fields.map(|(name, value)| (name, value.escape_ascii().to_string())))
            .finish()
    }
}

/// Returns a value as text, if it consists of visible ASCII characters, blanks and tabs.
#[must_use]
pub fn as_text(value: &[u8]) -> Option<&str> {
    let is_text = |byte: &u8| matches!(byte, b' '..=b'~' | b'\t');
    if !value.iter().all(is_text) {
        return None;
    }
    std::str::from_utf8(value).ok()
}

/// Returns the decimal digits of a number.
fn decimal(number: u64, digits: &mut [u8; MAX_DIGITS]) -> &[u8] {
    let mut start = MAX_DIGITS;
    let mut rest = number;
    loop {
        start -= 1;
        digits[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            return &digits[start..];
        }
    }
}

/// Returns a mask with one bit that depends on the length, the first and the last byte of a name,
/// without regard to case.
fn name_bit(name: &[u8]) -> u64 {
    let letter = |byte: Option<&u8>| u32::from(byte.map_or(0, |byte| byte | 0x20));
    let length = u32::try_from(name.len() % 64).unwrap_or(0);
    let number = length * 5 + letter(name.first()) * 3 + letter(name.last());
    1 << (number % 64)
}

#[cfg(test)]
mod tests;
