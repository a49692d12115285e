//! One field of a list: where its name and its value are.

use std::ops::Range;

/// Position of a text in the two buffers of a list, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Span {
    start: u32,
    length: u32,
}

/// Positions of the name and of the value of a field.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    /// Tag of the name ([`name_tag`]).
    pub(super) tag: u8,
    pub(super) name: Span,
    pub(super) value: Span,
}

impl Span {
    /// Creates the position of a text. Positions beyond 4 GiB refer to no text; no limit of a
    /// listener permits so much.
    pub(super) fn new(start: usize, length: usize) -> Self {
        Self {
            start: u32::try_from(start).unwrap_or(u32::MAX),
            length: u32::try_from(length).unwrap_or(u32::MAX),
        }
    }

    /// Returns the position of a text in the input; `None` if the text is no part of it.
    pub(super) fn within(input: &[u8], text: &[u8]) -> Option<Self> {
        // An empty text may point anywhere.
        if text.is_empty() {
            return Some(Self::default());
        }
        let start = (text.as_ptr() as usize).checked_sub(input.as_ptr() as usize)?;
        let is_inside = start + text.len() <= input.len() && u32::try_from(input.len()).is_ok();
        is_inside.then(|| Self::new(start, text.len()))
    }

    pub(super) fn length(self) -> usize {
        self.length as usize
    }

    pub(super) fn range(self) -> Range<usize> {
        let start = self.start as usize;
        start..start + self.length()
    }
}

/// Set of tags ([`name_tag`]), with one bit for each.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct TagSet([u64; 4]);

impl TagSet {
    pub(super) const EMPTY: Self = Self([0; 4]);

    /// Returns the set with another tag.
    pub(super) const fn with(mut self, tag: u8) -> Self {
        self.0[(tag >> 6) as usize] |= 1 << (tag & 63);
        self
    }

    pub(super) const fn contains(&self, tag: u8) -> bool {
        self.0[(tag >> 6) as usize] & (1 << (tag & 63)) != 0
    }
}

/// Returns a byte that depends on the length, the first and the last byte of a name, without
/// regard to case.
pub(super) const fn name_tag(name: &[u8]) -> u8 {
    let (Some(first), Some(last)) = (name.first(), name.last()) else {
        return 0;
    };
    // The lowest bits of the length suffice.
    let length = name.len().to_le_bytes()[0];
    let letters = (*first | 0x20).wrapping_mul(7).wrapping_add(*last | 0x20);
    letters.wrapping_add(length.wrapping_mul(29))
}
