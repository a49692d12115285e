//! The fields of a message head, or its trailers, as a flat list in the order of the message.
//!
//! The fields that were received stay in the buffer that they arrived in; a list of positions
//! refers to them. Lines that the proxy adds are appended to a second buffer. Nothing is hashed
//! or allocated per field. A lookup compares the tag of each name, one byte, and then the name.
//! Most names that the proxy looks for are absent, and the set of all tags says so at once.
//!
//! Names keep the case in which they arrived, and are compared without it (RFC 9110 section 5.1).

mod field;
mod header_map;
mod http1_lines;

use std::{fmt, ops::Range};

use bytes::Bytes;

use crate::message::headers::field::{Field, Span, TagSet, name_tag};

/// Number of fields that the proxy adds to a message at most, besides those of filters. It sizes
/// copied lists.
const MAX_ADDED_FIELDS: usize = 12;

/// Expected size of the lines that the proxy adds, in bytes.
const ADDED_BYTES: usize = 448;

/// Fields of a message head, or its trailers. All names and values are valid in HTTP/1, except that
/// a name of an HTTP/2 message can contain a quote.
#[derive(Clone, Default)]
pub struct Headers {
    received: Bytes,
    /// Lines of HTTP/1, one after another.
    added: Vec<u8>,
    fields: Vec<Field>,
    /// Tags of the names that are or were in the list.
    tags: TagSet,
}

/// Set of field names that is built at compile time, with their tags.
#[derive(Debug, Clone, Copy)]
pub struct NameSet {
    names: &'static [&'static str],
    tags: TagSet,
}

impl NameSet {
    /// Creates the set. It is evaluated at compile time.
    #[must_use]
    pub const fn new(names: &'static [&'static str]) -> Self {
        let mut tags = TagSet::EMPTY;
        let mut index = 0;
        while index < names.len() {
            tags = tags.with(name_tag(names[index].as_bytes()));
            index += 1;
        }
        Self { names, tags }
    }
}

/// Error for a field that is not a part of its input, or lies beyond its first 4 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfRange;

impl Headers {
    /// Creates the list of fields whose names and values are parts of `input`. It is complete
    /// with [`Self::with_buffer`]. Names must be tokens, and values valid in HTTP/1.
    ///
    /// # Errors
    /// If a name or a value is no part of the input.
    pub fn locate<'a>(
        input: &'a [u8],
        fields: impl ExactSizeIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<Self, OutOfRange> {
        let mut headers = Self {
            fields: Vec::with_capacity(fields.len()),
            ..Self::default()
        };
        for (name, value) in fields {
            let tag = name_tag(name);
            headers.tags = headers.tags.with(tag);
            headers.fields.push(Field {
                tag,
                name: Span::within(input, name).ok_or(OutOfRange)?,
                value: Span::within(input, value).ok_or(OutOfRange)?,
            });
        }
        Ok(headers)
    }

    /// Sets the buffer that starts with the input of [`Self::locate`].
    #[must_use]
    pub fn with_buffer(self, received: Bytes) -> Self {
        Self { received, ..self }
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
        // The name in the list lives as long as the list, in contrast to `name`.
        let (tag, name) = fields
            .first()
            .map_or((0, Span::default()), |field| (field.tag, field.name));
        let named = fields
            .iter()
            .filter(move |field| self.is_named(field, tag, self.text(name)));
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
        let (name, value) = (name.as_ref(), value.as_ref());
        let Some(position) = self.position(name.as_bytes()) else {
            return self.append(name, value);
        };
        let current = self.fields[position];
        if self.text(current.value) != value {
            let current_name = self.text(current.name).to_vec();
            self.fields[position] = self.add_line(&current_name, &[value]);
        }
        self.remove_from(position + 1, name.as_bytes());
    }

    /// Replaces all fields with a name by one with a number, or appends it.
    pub fn insert_number(&mut self, name: impl AsRef<str>, number: u64) {
        self.insert(name, itoa::Buffer::new().format(number));
    }

    /// Appends a field with a number.
    pub fn append_number(&mut self, name: impl AsRef<str>, number: u64) {
        self.append(name, itoa::Buffer::new().format(number));
    }

    /// Appends a field.
    pub fn append(&mut self, name: impl AsRef<str>, value: impl AsRef<[u8]>) {
        self.append_parts(name, &[value.as_ref()]);
    }

    /// Appends a field whose value consists of several parts.
    pub fn append_parts(&mut self, name: impl AsRef<str>, value: &[&[u8]]) {
        let field = self.add_line(name.as_ref().as_bytes(), value);
        self.tags = self.tags.with(field.tag);
        self.fields.push(field);
    }

    /// Removes all fields with a name.
    pub fn remove(&mut self, name: impl AsRef<str>) {
        let name = name.as_ref().as_bytes();
        if let Some(position) = self.position(name) {
            self.remove_from(position, name);
        }
    }

    /// Copies the fields that have none of these names, with capacity for those that the proxy
    /// adds.
    #[must_use]
    pub fn without(&self, names: &NameSet, others: &[&str]) -> Self {
        self.copy_fields(|field| {
            let is_name = |name: &&str| {
                let name = name.as_bytes();
                self.is_named(field, name_tag(name), name)
            };
            let is_listed = names.tags.contains(field.tag) && names.names.iter().any(is_name);
            !is_listed && !others.iter().any(is_name)
        })
    }

    /// Copies the fields whose name satisfies a predicate.
    #[must_use]
    pub fn filtered(&self, mut is_kept: impl FnMut(&[u8]) -> bool) -> Self {
        self.copy_fields(|field| is_kept(self.text(field.name)))
    }

    fn copy_fields(&self, is_kept: impl FnMut(&&Field) -> bool) -> Self {
        let mut fields = Vec::with_capacity(self.fields.len() + MAX_ADDED_FIELDS);
        fields.extend(self.fields.iter().filter(is_kept));
        let mut added = Vec::with_capacity(self.added.len() + ADDED_BYTES);
        added.extend_from_slice(&self.added);
        Self {
            received: self.received.clone(),
            added,
            fields,
            tags: self.tags,
        }
    }

    /// Copies the fields out of the buffer that they arrived in, which a slice would keep
    /// allocated.
    #[must_use]
    pub fn to_compact(&self) -> Self {
        let mut compact = Self {
            fields: Vec::with_capacity(self.len()),
            ..Self::default()
        };
        for (name, value) in self.iter() {
            compact.append(name, value);
        }
        compact.added.shrink_to_fit();
        compact
    }

    /// Returns the size of all names and values, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let sizes = self
            .fields
            .iter()
            .map(|field| field.name.length() + field.value.length());
        sizes.sum()
    }

    fn position(&self, name: &[u8]) -> Option<usize> {
        let tag = name_tag(name);
        if !self.tags.contains(tag) {
            return None;
        }
        let mut fields = self.fields.iter();
        fields.position(|field| self.is_named(field, tag, name))
    }

    /// Returns whether a field has a name, whose tag is `tag`.
    fn is_named(&self, field: &Field, tag: u8, name: &[u8]) -> bool {
        if field.tag != tag {
            return false;
        }
        let text = self.text(field.name);
        // The case rarely differs, and this comparison is the faster one.
        text == name || text.eq_ignore_ascii_case(name)
    }

    /// Removes the fields with a name from a position on.
    fn remove_from(&mut self, position: usize, name: &[u8]) {
        let tag = name_tag(name);
        for index in (position..self.fields.len()).rev() {
            if self.is_named(&self.fields[index], tag, name) {
                self.fields.remove(index);
            }
        }
    }

    fn text(&self, span: Span) -> &[u8] {
        self.bytes(span.range())
    }

    /// Returns bytes of either buffer. Those of `added` start behind the end of `received`.
    fn bytes(&self, range: Range<usize>) -> &[u8] {
        let text = match range.start.checked_sub(self.received.len()) {
            None => self.received.get(range),
            Some(start) => self.added.get(start..start + range.len()),
        };
        text.unwrap_or_default()
    }

    fn add_line(&mut self, name: &[u8], value: &[&[u8]]) -> Field {
        let ends_line = |byte: &u8| matches!(byte, b'\r' | b'\n' | b'\0');
        debug_assert!(!value.iter().copied().flatten().any(ends_line), "{value:?}");
        let start = self.received.len() + self.added.len();
        let value_length = value.iter().map(|part| part.len()).sum();
        self.added.reserve(name.len() + value_length + 4);
        self.added.extend_from_slice(name);
        self.added.extend_from_slice(b": ");
        for part in value {
            self.added.extend_from_slice(part);
        }
        self.added.extend_from_slice(b"\r\n");
        Field {
            tag: name_tag(name),
            name: Span::new(start, name.len()),
            value: Span::new(start + name.len() + 2, value_length),
        }
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

#[cfg(test)]
mod tests;
