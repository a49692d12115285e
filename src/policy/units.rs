//! Quantities in a policy file: durations, sizes, timestamps, percentages and sets of statuses.
//!
//! Each type is parsed once, at the boundary, into a value that is always valid. It describes
//! itself in the JSON Schema. The notations are those of Kubernetes: GEP-2257 for durations,
//! and quantities for sizes. The module does not know what a quantity is used for.

use std::{
    borrow::Cow,
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

use crate::resilience::ratio::Ratio;

/// Pattern of a duration (GEP-2257): one to four numbers of up to five digits, each with a
/// unit.
const DURATION_PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";
/// Pattern of a size. The suffixes are those of Kubernetes quantities that make sense for
/// memory.
const SIZE_PATTERN: &str = "^[0-9]{1,12}(Ki|Mi|Gi|k|M|G)?$";

/// Duration in the notation of the Gateway API (GEP-2257): `1h30m`, `250ms`, `0s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyDuration(pub Duration);

/// Number of bytes in the notation of a Kubernetes quantity: `64Ki`, `10M`, `512`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// Point in time in the notation of RFC 3339: `2026-12-01T00:00:00Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub SystemTime);

/// Percentage in a policy file, in `0.0..=100.0`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Percent(pub f64);

impl Percent {
    /// Creates a percentage; a number above 100 counts as 100.
    #[must_use]
    pub fn from_integer(percent: u8) -> Self {
        Self(f64::from(percent.min(100)))
    }

    /// Returns the percentage as a ratio in `0.0..=1.0`.
    #[must_use]
    pub fn ratio(self) -> Ratio {
        Ratio::from_percent(self.0.clamp(0.0, 100.0)).unwrap_or(Ratio::ZERO)
    }
}

/// Range of HTTP statuses: `503`, `"5xx"`, `"500-504"` or `gateway-error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusRange {
    first: u16,
    last: u16,
}

/// Set of HTTP statuses in `100..=599`, as one bit per status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StatusSet([u64; 8]);

/// Error for a text that is not a quantity of the expected type. The message shows a valid
/// example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidQuantity(String);

impl fmt::Display for InvalidQuantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidQuantity {}

impl FromStr for PolicyDuration {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        let invalid = || {
            InvalidQuantity(format!(
                "`{text}` is not a duration: write hours, minutes, seconds and milliseconds like \
                 `1h30m`, `15s` or `250ms`"
            ))
        };
        let mut rest = text;
        let mut total = Duration::ZERO;
        let mut parts = 0;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let number: u64 = if (1..=5).contains(&digits) {
                rest[..digits].parse().map_err(|_| invalid())?
            } else {
                return Err(invalid());
            };
            rest = &rest[digits..];
            let (unit, millis) = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)]
                .into_iter()
                .find(|(unit, _)| rest.starts_with(unit))
                .ok_or_else(invalid)?;
            rest = &rest[unit.len()..];
            total += Duration::from_millis(number * millis);
            parts += 1;
        }
        if (1..=4).contains(&parts) {
            Ok(Self(total))
        } else {
            Err(invalid())
        }
    }
}

impl fmt::Display for PolicyDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut millis = self.0.as_millis();
        if millis == 0 {
            return f.write_str("0s");
        }
        for (unit, size) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
            if millis >= size {
                write!(f, "{}{unit}", millis / size)?;
                millis %= size;
            }
        }
        Ok(())
    }
}

impl FromStr for ByteSize {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        let invalid = || {
            InvalidQuantity(format!(
                "`{text}` is not a size: write bytes like `65536`, `64Ki`, `10M` or `1Gi`"
            ))
        };
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=12).contains(&digits) {
            return Err(invalid());
        }
        let number: u64 = text[..digits].parse().map_err(|_| invalid())?;
        let factor = match &text[digits..] {
            "" => 1,
            "k" => 1_000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            _ => return Err(invalid()),
        };
        number.checked_mul(factor).map(Self).ok_or_else(invalid)
    }
}

impl FromStr for Timestamp {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        let timestamp = OffsetDateTime::parse(text, &Rfc3339).ok();
        // RFC 3339 has years from 0 to 9999, also after the conversion to UTC.
        let timestamp = timestamp
            .and_then(|timestamp| timestamp.checked_to_offset(UtcOffset::UTC))
            .filter(|timestamp| (0..=9_999).contains(&timestamp.year()));
        let timestamp = timestamp.ok_or_else(|| {
            InvalidQuantity(format!(
                "`{text}` is not a point in time: write it like `2026-12-01T00:00:00Z`"
            ))
        })?;
        Ok(Self(timestamp.into()))
    }
}

impl FromStr for StatusRange {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        let invalid = || {
            InvalidQuantity(format!(
                "`{text}` is not a set of statuses: write `503`, `5xx`, `500-504` or \
                 `gateway-error`"
            ))
        };
        if text == "gateway-error" {
            return Ok(Self {
                first: 502,
                last: 504,
            });
        }
        let status = |text: &str| {
            text.parse::<u16>()
                .ok()
                .filter(|code| (100..=599).contains(code) && text.len() == 3)
        };
        let (first, last) = if let Some(class) = text.strip_suffix("xx") {
            let class: u16 = class.parse().map_err(|_| invalid())?;
            (
                class.checked_mul(100).ok_or_else(invalid)?,
                class.saturating_mul(100).saturating_add(99),
            )
        } else if let Some((first, last)) = text.split_once('-') {
            (
                status(first).ok_or_else(invalid)?,
                status(last).ok_or_else(invalid)?,
            )
        } else {
            let code = status(text).ok_or_else(invalid)?;
            (code, code)
        };
        if !(100..=599).contains(&first) || !(100..=599).contains(&last) || last < first {
            return Err(invalid());
        }
        Ok(Self { first, last })
    }
}

impl StatusRange {
    /// Creates the range from `first` to `last`, both included. Bounds outside of `100..=599`
    /// are clamped.
    #[must_use]
    pub fn from_bounds(first: u16, last: u16) -> Self {
        Self {
            first: first.clamp(100, 599),
            last: last.clamp(100, 599),
        }
    }
}

impl StatusSet {
    /// Returns whether the status is in the set.
    #[must_use]
    pub fn contains(&self, status: u16) -> bool {
        status
            .checked_sub(100)
            .is_some_and(|bit| bit < 500 && self.0[usize::from(bit / 64)] >> (bit % 64) & 1 == 1)
    }
}

/// Writes the statuses as policies do: `5xx` for a whole class, otherwise ranges and codes.
impl fmt::Display for StatusSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        let mut next = 100;
        while let Some(first) = (next..600).find(|status| self.contains(*status)) {
            let is_whole_class =
                first % 100 == 0 && (first..first + 100).all(|status| self.contains(status));
            next = if is_whole_class {
                first + 100
            } else {
                (first..600)
                    .find(|status| !self.contains(*status))
                    .unwrap_or(600)
            };
            match next - first {
                100 if is_whole_class => write!(f, "{separator}{}xx", first / 100)?,
                1 => write!(f, "{separator}{first}")?,
                _ => write!(f, "{separator}{first}-{}", next - 1)?,
            }
            separator = " ";
        }
        Ok(())
    }
}

impl<'a> FromIterator<&'a StatusRange> for StatusSet {
    fn from_iter<I: IntoIterator<Item = &'a StatusRange>>(ranges: I) -> Self {
        let mut set = Self::default();
        for range in ranges {
            for bit in range.first - 100..=range.last - 100 {
                set.0[usize::from(bit / 64)] |= 1 << (bit % 64);
            }
        }
        set
    }
}

impl ByteSize {
    /// Returns the size as a length in memory; a larger size is the maximum length.
    pub(in crate::policy) fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// Writes the point in time as RFC 3339 in UTC, like `2026-12-01T00:00:00Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = OffsetDateTime::from(self.0).format(&Rfc3339);
        f.write_str(&text.map_err(|_| fmt::Error)?)
    }
}

/// Returns the duration of a field, or its default.
pub(in crate::policy) fn duration_or(
    duration: Option<PolicyDuration>,
    default: Duration,
) -> Duration {
    duration.map_or(default, |duration| duration.0)
}

/// Visitor that reads a text or an integer and parses it as text. The first field describes the
/// expected value in errors.
struct ScalarVisitor<T>(&'static str, std::marker::PhantomData<T>);

impl<T: FromStr<Err = InvalidQuantity>> de::Visitor<'_> for ScalarVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        number.to_string().parse().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        number.to_string().parse().map_err(E::custom)
    }
}

fn scalar_visitor<T>(what: &'static str) -> ScalarVisitor<T> {
    ScalarVisitor(what, std::marker::PhantomData)
}

impl<'de> Deserialize<'de> for PolicyDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(scalar_visitor("a duration like `250ms`"))
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(scalar_visitor(
            "a point in time like `2026-12-01T00:00:00Z`",
        ))
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(scalar_visitor("a size like `64Ki`"))
    }
}

impl<'de> Deserialize<'de> for StatusRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(scalar_visitor("a status like `503` or `5xx`"))
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let percent = f64::deserialize(deserializer)?;
        if (0.0..=100.0).contains(&percent) {
            Ok(Self(percent))
        } else {
            Err(de::Error::custom(format!(
                "{percent} is not a percentage: write a number from 0 to 100"
            )))
        }
    }
}

macro_rules! schema {
    ($type:ty, $name:literal, $schema:tt) => {
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

schema!(PolicyDuration, "Duration", {
    "type": "string",
    "pattern": DURATION_PATTERN,
    "format": "outrigger-duration",
    "description": "A duration (GEP-2257): `1h30m`, `15s`, `250ms`.",
});
schema!(ByteSize, "Size", {
    "type": ["string", "integer"],
    "pattern": SIZE_PATTERN,
    "format": "outrigger-size",
    "minimum": 0,
    "description": "Bytes, as a Kubernetes quantity: `64Ki`, `10M`, `512`.",
});
schema!(Timestamp, "Timestamp", {
    "type": "string",
    "format": "outrigger-timestamp",
    "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9:.]+([Zz]|[+-][0-9]{2}:[0-9]{2})$",
    "description": "A point in time (RFC 3339): `2026-12-01T00:00:00Z`.",
});
schema!(Percent, "Percent", {
    "type": "number",
    "minimum": 0,
    "maximum": 100,
    "description": "A percentage from 0 to 100.",
});
schema!(StatusRange, "StatusRange", {
    "type": ["string", "integer"],
    "pattern": "^([1-5]xx|[1-5][0-9]{2}(-[1-5][0-9]{2})?|gateway-error)$",
    "format": "outrigger-status",
    "minimum": 100,
    "maximum": 599,
    "description": "Statuses: `503`, `5xx`, `500-504` or `gateway-error` (502 to 504).",
});

#[cfg(test)]
mod tests;
