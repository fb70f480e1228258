//! Label rules.

use std::collections::BTreeMap;

use gantry_errdefs::{Error, Result};

/// Labels of an object, in key order.
pub type Labels = BTreeMap<String, String>;

/// Longest label, key and value together, in bytes (containerd's bound).
pub const LABEL_LEN_MAX: usize = 4096;

/// How much of a key an error shows.
const SHOWN_KEY_LEN: usize = 64;

/// Checks one label.
///
/// # Errors
/// InvalidArgument when key and value together are too long.
pub fn validate(key: &str, value: &str) -> Result<()> {
    let len = key.len() + value.len();
    if len <= LABEL_LEN_MAX {
        return Ok(());
    }
    let shown: String = key.chars().take(SHOWN_KEY_LEN).collect();
    Err(Error::invalid_argument(format!(
        "label key and value length ({len} bytes) greater than maximum size ({LABEL_LEN_MAX} bytes), key: {shown}"
    )))
}

/// Checks every label of a set.
///
/// # Errors
/// InvalidArgument for the first label that is too long.
pub fn validate_all(labels: &Labels) -> Result<()> {
    labels.iter().try_for_each(|(k, v)| validate(k, v))
}
