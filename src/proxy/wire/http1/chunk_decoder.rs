//! Decodes the chunked transfer coding (RFC 9112 section 7.1).
//!
//! Lenient readers are the cause of most request smuggling. A chunk size has 1 to 16 hexadecimal
//! digits and nothing around them, extensions follow the grammar without white space, and each
//! line ends with CRLF.

use bytes::{Buf, Bytes, BytesMut};

use crate::{
    message::headers::Headers,
    proxy::wire::{
        http1::{InvalidMessage, head},
        trailer_fields,
    },
};

/// Maximum length of the extensions of one body, in bytes. No known implementation uses them.
const MAX_EXTENSION_BYTES: usize = 4 << 10;

/// Maximum length of a line with a chunk size, in bytes.
const MAX_SIZE_LINE_BYTES: usize = MAX_EXTENSION_BYTES + 32;

/// Maximum length of the trailers, in bytes.
const MAX_TRAILER_BYTES: usize = 64 << 10;

/// Maximum number of digits of a chunk size.
const MAX_SIZE_DIGITS: usize = 16;

/// Decoder of one chunked body.
#[derive(Debug, Default)]
pub(crate) struct ChunkDecoder {
    state: DecoderState,
    extension_bytes: usize,
    /// Boxed, because almost no body has trailers.
    trailers: Option<Box<Headers>>,
}

/// Part of the body that comes next.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum DecoderState {
    #[default]
    SizeLine,
    Data {
        remaining: u64,
    },
    DataEnd,
    Trailers,
    Done,
}

/// Result of one step.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BodyProgress {
    /// A part of the body, never empty.
    Data(Bytes),
    /// More input is needed.
    NeedsInput,
    /// The body is complete.
    Done,
}

impl ChunkDecoder {
    /// Returns whether the body is complete.
    pub(super) fn is_done(&self) -> bool {
        self.state == DecoderState::Done
    }

    /// Takes the next part of the body from the input.
    ///
    /// # Errors
    /// If the input is no valid chunked body.
    pub(super) fn decode(&mut self, input: &mut BytesMut) -> Result<BodyProgress, InvalidMessage> {
        loop {
            match self.state {
                DecoderState::SizeLine => {
                    let Some(size) = self.take_size(input)? else {
                        return Ok(BodyProgress::NeedsInput);
                    };
                    self.state = match size {
                        0 => DecoderState::Trailers,
                        size => DecoderState::Data { remaining: size },
                    };
                }
                DecoderState::Data { remaining } => {
                    if input.is_empty() {
                        return Ok(BodyProgress::NeedsInput);
                    }
                    let available = input.len() as u64;
                    let count = usize::try_from(remaining.min(available)).unwrap_or(usize::MAX);
                    let data = input.split_to(count).freeze();
                    self.state = match remaining - count as u64 {
                        0 => DecoderState::DataEnd,
                        remaining => DecoderState::Data { remaining },
                    };
                    return Ok(BodyProgress::Data(data));
                }
                DecoderState::DataEnd => {
                    if !take_line_end(input)? {
                        return Ok(BodyProgress::NeedsInput);
                    }
                    self.state = DecoderState::SizeLine;
                }
                DecoderState::Trailers => {
                    if !self.take_end(input)? {
                        return Ok(BodyProgress::NeedsInput);
                    }
                    self.state = DecoderState::Done;
                }
                DecoderState::Done => return Ok(BodyProgress::Done),
            }
        }
    }

    /// Returns the trailers that may be forwarded, once the body is complete; `None` if there are
    /// none.
    pub(super) fn trailers(&self) -> Option<&Headers> {
        self.trailers.as_deref()
    }

    /// Takes the trailers and the empty line after them; `false` if they are not complete yet.
    fn take_end(&mut self, input: &mut BytesMut) -> Result<bool, InvalidMessage> {
        if input.is_empty() || input.starts_with(b"\r") {
            return take_line_end(input);
        }
        match head::take_trailers(input)? {
            Some(trailers) => {
                self.trailers = trailer_fields::without_forbidden(&trailers).map(Box::new);
                Ok(true)
            }
            None if input.len() > MAX_TRAILER_BYTES => Err(InvalidMessage),
            None => Ok(false),
        }
    }

    /// Takes a line with a chunk size; `None` if it is not complete yet.
    fn take_size(&mut self, input: &mut BytesMut) -> Result<Option<u64>, InvalidMessage> {
        let Some(line_feed) = input.iter().position(|byte| *byte == b'\n') else {
            return if input.len() > MAX_SIZE_LINE_BYTES {
                Err(InvalidMessage)
            } else {
                Ok(None)
            };
        };
        let line = input[..line_feed]
            .strip_suffix(b"\r")
            .ok_or(InvalidMessage)?;
        let digits = line
            .iter()
            .take_while(|byte| byte.is_ascii_hexdigit())
            .count();
        let extension = &line[digits..];
        self.extension_bytes += extension.len();
        if digits == 0
            || digits > MAX_SIZE_DIGITS
            || self.extension_bytes > MAX_EXTENSION_BYTES
            || !are_extensions(extension)
        {
            return Err(InvalidMessage);
        }
        let digits = std::str::from_utf8(&line[..digits]).map_err(|_| InvalidMessage)?;
        let size = u64::from_str_radix(digits, 16).map_err(|_| InvalidMessage)?;
        input.advance(line_feed + 1);
        Ok(Some(size))
    }
}

/// Takes CRLF; `false` if it is not complete yet.
fn take_line_end(input: &mut BytesMut) -> Result<bool, InvalidMessage> {
    match &input[..input.len().min(2)] {
        b"\r\n" => {
            input.advance(2);
            Ok(true)
        }
        b"" | b"\r" => Ok(false),
        _ => Err(InvalidMessage),
    }
}

/// Returns whether the text is a list of extensions: `;name`, `;name=token` or `;name="text"`.
fn are_extensions(mut text: &[u8]) -> bool {
    while let Some(rest) = text.strip_prefix(b";") {
        let Some(rest) = skip_token(rest) else {
            return false;
        };
        text = match rest.strip_prefix(b"=") {
            None => rest,
            Some(value) => match skip_token(value).or_else(|| skip_quoted_text(value)) {
                Some(rest) => rest,
                None => return false,
            },
        };
    }
    text.is_empty()
}

/// Returns what follows a token (RFC 9110 section 5.6.2); `None` if there is none.
fn skip_token(text: &[u8]) -> Option<&[u8]> {
    let is_token = |byte: &&u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let length = text.iter().take_while(is_token).count();
    (length > 0).then(|| &text[length..])
}

/// Returns what follows a quoted string (RFC 9110 section 5.6.4); `None` if there is none.
fn skip_quoted_text(text: &[u8]) -> Option<&[u8]> {
    let rest = text.strip_prefix(b"\"")?;
    let mut bytes = rest.iter().enumerate();
    while let Some((index, byte)) = bytes.next() {
        match byte {
            b'"' => return Some(&rest[index + 1..]),
            b'\\' => {
                let (_, escaped) = bytes.next()?;
                is_text(*escaped).then_some(())?;
            }
            byte => is_text(*byte).then_some(())?,
        }
    }
    None
}

/// Returns whether the byte may occur in a quoted string.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

#[cfg(test)]
mod tests;
