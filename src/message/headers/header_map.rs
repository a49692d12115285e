//! Conversion from and to the map that the h2 crate uses.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::message::headers::{Headers, field::Field};

impl From<&HeaderMap> for Headers {
    fn from(map: &HeaderMap) -> Self {
        let mut headers = Self {
            fields: Vec::with_capacity(map.len()),
            ..Self::default()
        };
        for (name, value) in map {
            headers.append(name, value);
        }
        headers
    }
}

impl From<&Headers> for HeaderMap {
    fn from(headers: &Headers) -> Self {
        let added = Bytes::copy_from_slice(&headers.added);
        let value_of = |field: &Field| {
            let range = field.value.range();
            match range.start.checked_sub(headers.received.len()) {
                None => headers.received.slice(range),
                Some(start) => added.slice(start..start + range.len()),
            }
        };
        let mut map = Self::with_capacity(headers.len());
        for field in &headers.fields {
            let name = HeaderName::from_bytes(headers.text(field.name));
            let value = HeaderValue::from_maybe_shared(value_of(field));
            // Both are valid in HTTP/1, and therefore here.
            if let (Ok(name), Ok(value)) = (name, value) {
                map.append(name, value);
            }
        }
        map
    }
}
