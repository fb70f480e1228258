//! Error classes and their gRPC, ttrpc and text forms.
//!
//! Every fallible public function of the project returns [`Error`]: a [`Class`] that clients test
//! for, and a message that names the object, what was tried and why it failed. The text form is
//! `<message>: <class words>`, the shape in which containerd's clients parse it
//! (`errdefs/pkg/errgrpc`).
//!
//! gRPC and ttrpc share one set of status codes, so one mapping serves both ([`Class::code`],
//! [`Class::from_code`]). With the feature `grpc` the conversions from and to `tonic::Status`
//! are here as well: this file set is the only place that knows them.
#![forbid(unsafe_code)]

mod class;
#[cfg(feature = "testsuite")]
pub mod expect;
#[cfg(feature = "grpc")]
mod grpc;

use std::fmt;

pub use class::Class;

/// The result of a fallible operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn std::error::Error + Send + Sync + 'static>;

/// A typed error: a class to test for and a message to read.
pub struct Error {
    class: Class,
    message: String,
    source: Option<Source>,
}

impl Error {
    /// Makes an error of `class`; `message` names the object and what went wrong, without the
    /// class words (they are appended when the error is shown).
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Self { class, message: message.into(), source: None }
    }

    /// Attaches the error that caused this one; its text is not repeated in the message.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Puts `what` in front of the message, keeping the class: `what: message`.
    #[must_use]
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = if self.message.is_empty() {
            what.to_string()
        } else {
            format!("{what}: {}", self.message)
        };
        self
    }

    /// An I/O error with the path or object it happened on; the class follows the error kind.
    pub fn io(what: impl fmt::Display, err: std::io::Error) -> Self {
        Self::new(Class::of_io(&err), format!("{what}: {err}")).with_source(err)
    }

    /// The class that clients test for.
    pub fn class(&self) -> Class {
        self.class
    }

    /// The message without the class words.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The full text, `<message>: <class words>`; the words are not repeated when the message
    /// ends in them already. An [`Class::Unknown`] error is its message alone, as clients expect
    /// of runtime failures passed through.
    pub fn text(&self) -> String {
        let words = self.class.words();
        if self.message.is_empty() {
            words.to_owned()
        } else if self.class == Class::Unknown || self.message.ends_with(words) {
            self.message.clone()
        } else {
            format!("{}: {words}", self.message)
        }
    }

    /// Rebuilds an error from a status code and the text a peer sent with it.
    pub fn from_code(code: i32, text: &str) -> Self {
        let class = Class::from_code(code, text);
        let message = text
            .strip_suffix(class.words())
            .map(|t| t.strip_suffix(": ").unwrap_or(t))
            .unwrap_or(text);
        Self::new(class, message)
    }
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $make:ident, $is:ident, $class:ident;)*) => {
        impl Error {
            $(
                $(#[$doc])*
                pub fn $make(message: impl Into<String>) -> Self {
                    Self::new(Class::$class, message)
                }

                #[doc = concat!("Whether the class is [`Class::", stringify!($class), "`].")]
                pub fn $is(&self) -> bool {
                    self.class == Class::$class
                }
            )*
        }
    };
}

constructors! {
    /// The request is malformed, whatever the state of the system.
    invalid_argument, is_invalid_argument, InvalidArgument;
    /// The named object does not exist.
    not_found, is_not_found, NotFound;
    /// The object to create exists already.
    already_exists, is_already_exists, AlreadyExists;
    /// The caller may not do this.
    permission_denied, is_permission_denied, PermissionDenied;
    /// A named limit was reached.
    resource_exhausted, is_resource_exhausted, ResourceExhausted;
    /// The object is not in the state the operation needs.
    failed_precondition, is_failed_precondition, FailedPrecondition;
    /// A concurrent change won.
    aborted, is_aborted, Aborted;
    /// An offset or index past the valid range.
    out_of_range, is_out_of_range, OutOfRange;
    /// The operation is not built, or not possible for this object.
    unimplemented, is_unimplemented, Unimplemented;
    /// An invariant of ours is broken.
    internal, is_internal, Internal;
    /// Try again later: locked, starting, or a peer that does not answer.
    unavailable, is_unavailable, Unavailable;
    /// Stored data is lost or damaged.
    data_loss, is_data_loss, DataLoss;
    /// Credentials are missing or wrong.
    unauthenticated, is_unauthenticated, Unauthenticated;
    /// The caller went away.
    canceled, is_canceled, Canceled;
    /// A deadline passed.
    deadline_exceeded, is_deadline_exceeded, DeadlineExceeded;
    /// Anything else, most of all failures of a runtime passed through.
    unknown, is_unknown, Unknown;
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({})", self.class, self.text())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|s| s as _)
    }
}

/// Adds context to errors on their way up.
pub trait ResultExt<T> {
    /// Puts `what()` in front of the message of an error.
    ///
    /// # Errors
    /// The same error, with more text.
    fn context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T>;
}

impl<T> ResultExt<T> for Result<T> {
    fn context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|e| e.context(what()))
    }
}

impl<T> ResultExt<T> for std::io::Result<T> {
    fn context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|e| Error::io(what(), e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_ends_in_the_class_words_once() {
        assert_eq!(Error::not_found("container \"x\"").text(), "container \"x\": not found");
        assert_eq!(
            Error::not_found("container \"x\": not found").text(),
            "container \"x\": not found"
        );
        assert_eq!(Error::unknown("runc failed").text(), "runc failed");
    }

    #[test]
    fn codes_round_trip() {
        for class in Class::ALL {
            let err = Error::new(class, "blob sha256:00");
            let back = Error::from_code(class.code(), &err.text());
            assert_eq!(back.class(), class);
            assert_eq!(back.message(), "blob sha256:00");
        }
    }

    #[test]
    fn io_kinds_keep_their_meaning() {
        let err = Error::io("/x", std::io::Error::from(std::io::ErrorKind::NotFound));
        assert!(err.is_not_found());
        assert!(std::error::Error::source(&err).is_some());
    }
}
