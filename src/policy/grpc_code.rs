//! The status codes of gRPC.

use std::fmt;

use schemars::JsonSchema;
use serde::Deserialize;

/// Status code of gRPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GrpcCode {
    /// gRPC status 1: the client cancelled the call.
    Cancelled,
    /// gRPC status 2: the error has no known status.
    Unknown,
    /// gRPC status 3: an argument is invalid.
    InvalidArgument,
    /// gRPC status 4: the deadline expired before the call completed.
    DeadlineExceeded,
    /// gRPC status 5: a requested entity does not exist.
    NotFound,
    /// gRPC status 6: an entity to create exists already.
    AlreadyExists,
    /// gRPC status 7: the client may not make this call.
    PermissionDenied,
    /// gRPC status 8: a quota or another resource is exhausted.
    ResourceExhausted,
    /// gRPC status 9: the system is not in the required state.
    FailedPrecondition,
    /// gRPC status 10: the call was aborted, usually by a conflict.
    Aborted,
    /// gRPC status 11: an argument is beyond the valid range.
    OutOfRange,
    /// gRPC status 12: the service does not offer this method.
    Unimplemented,
    /// gRPC status 13: the service has an internal error.
    Internal,
    /// gRPC status 14: the service is temporarily unavailable.
    Unavailable,
    /// gRPC status 15: data is lost or corrupted.
    DataLoss,
    /// gRPC status 16: the call has no valid credentials.
    Unauthenticated,
}

impl GrpcCode {
    /// All statuses, in the order of their numbers.
    pub(in crate::policy) const ALL: [Self; 16] = [
        Self::Cancelled,
        Self::Unknown,
        Self::InvalidArgument,
        Self::DeadlineExceeded,
        Self::NotFound,
        Self::AlreadyExists,
        Self::PermissionDenied,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::OutOfRange,
        Self::Unimplemented,
        Self::Internal,
        Self::Unavailable,
        Self::DataLoss,
        Self::Unauthenticated,
    ];

    /// Returns the number of the status on the wire, 1 to 16.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8 + 1
    }
}

/// Writes the name that policies use.
impl fmt::Display for GrpcCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cancelled => "cancelled",
            Self::Unknown => "unknown",
            Self::InvalidArgument => "invalid-argument",
            Self::DeadlineExceeded => "deadline-exceeded",
            Self::NotFound => "not-found",
            Self::AlreadyExists => "already-exists",
            Self::PermissionDenied => "permission-denied",
            Self::ResourceExhausted => "resource-exhausted",
            Self::FailedPrecondition => "failed-precondition",
            Self::Aborted => "aborted",
            Self::OutOfRange => "out-of-range",
            Self::Unimplemented => "unimplemented",
            Self::Internal => "internal",
            Self::Unavailable => "unavailable",
            Self::DataLoss => "data-loss",
            Self::Unauthenticated => "unauthenticated",
        })
    }
}
