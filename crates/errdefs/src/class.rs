//! The closed set of error classes and their codes.

/// What went wrong, in the terms clients test for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The request is malformed, whatever the state of the system.
    InvalidArgument,
    /// The named object does not exist.
    NotFound,
    /// The object to create exists already.
    AlreadyExists,
    /// The caller may not do this.
    PermissionDenied,
    /// A named limit was reached.
    ResourceExhausted,
    /// The object is not in the state the operation needs.
    FailedPrecondition,
    /// A concurrent change won.
    Aborted,
    /// An offset or index past the valid range.
    OutOfRange,
    /// The operation is not built, or not possible for this object.
    Unimplemented,
    /// An invariant of ours is broken.
    Internal,
    /// Try again later.
    Unavailable,
    /// Stored data is lost or damaged.
    DataLoss,
    /// Credentials are missing or wrong.
    Unauthenticated,
    /// The caller went away.
    Canceled,
    /// A deadline passed.
    DeadlineExceeded,
    /// Anything else, most of all failures of a runtime passed through.
    Unknown,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 16] = [
        Self::InvalidArgument,
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
        Self::Canceled,
        Self::DeadlineExceeded,
        Self::Unknown,
    ];

    /// The status code of gRPC and ttrpc (google.rpc.Code).
    pub const fn code(self) -> i32 {
        match self {
            Self::Canceled => 1,
            Self::Unknown => 2,
            Self::InvalidArgument => 3,
            Self::DeadlineExceeded => 4,
            Self::NotFound => 5,
            Self::AlreadyExists => 6,
            Self::PermissionDenied => 7,
            Self::ResourceExhausted => 8,
            Self::FailedPrecondition => 9,
            Self::Aborted => 10,
            Self::OutOfRange => 11,
            Self::Unimplemented => 12,
            Self::Internal => 13,
            Self::Unavailable => 14,
            Self::DataLoss => 15,
            Self::Unauthenticated => 16,
        }
    }

    /// The class of a status code. Code 2 (Unknown) is looked at twice: old shims send every
    /// error as Unknown with the class only in the words that end the text.
    pub fn from_code(code: i32, text: &str) -> Self {
        if code == 2 {
            return Self::from_words(text);
        }
        Self::ALL.into_iter().find(|c| c.code() == code).unwrap_or(Self::Unknown)
    }

    /// The class whose words end `text`, or Unknown.
    fn from_words(text: &str) -> Self {
        [
            Self::NotFound,
            Self::AlreadyExists,
            Self::FailedPrecondition,
            Self::InvalidArgument,
            Self::Unavailable,
            Self::Unimplemented,
        ]
        .into_iter()
        .find(|c| text.ends_with(c.words()))
        .unwrap_or(Self::Unknown)
    }

    /// The words that end an error's text, as containerd's errdefs spells them.
    pub const fn words(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid argument",
            Self::NotFound => "not found",
            Self::AlreadyExists => "already exists",
            Self::PermissionDenied => "permission denied",
            Self::ResourceExhausted => "resource exhausted",
            Self::FailedPrecondition => "failed precondition",
            Self::Aborted => "aborted",
            Self::OutOfRange => "out of range",
            Self::Unimplemented => "not implemented",
            Self::Internal => "internal",
            Self::Unavailable => "unavailable",
            Self::DataLoss => "data loss",
            Self::Unauthenticated => "unauthenticated",
            Self::Canceled => "context canceled",
            Self::DeadlineExceeded => "context deadline exceeded",
            Self::Unknown => "unknown",
        }
    }

    /// The class of an I/O error, by its kind.
    pub fn of_io(err: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        match err.kind() {
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::AlreadyExists => Self::AlreadyExists,
            ErrorKind::PermissionDenied => Self::PermissionDenied,
            ErrorKind::InvalidInput | ErrorKind::InvalidData => Self::InvalidArgument,
            ErrorKind::TimedOut => Self::DeadlineExceeded,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::ResourceExhausted,
            ErrorKind::Unsupported => Self::Unimplemented,
            ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::NotConnected => Self::Unavailable,
            _ => Self::Unknown,
        }
    }
}
