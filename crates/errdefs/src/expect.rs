//! What conformance suites expect of a call.

use crate::{Class, Error, Result};

/// The value of a call that must succeed.
///
/// # Panics
/// With the error, when it did not.
#[track_caller]
pub fn ok<T>(result: Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(e) => panic!("unexpected error {e:?}"),
    }
}

/// The error of a call that must fail, of `class`.
///
/// # Panics
/// When it succeeded, or failed in another way.
#[track_caller]
pub fn fails<T>(result: Result<T>, class: Class) -> Error {
    match result {
        Ok(_) => panic!("expected {class:?}, got success"),
        Err(e) => {
            assert_eq!(e.class(), class, "{e}");
            e
        }
    }
}
