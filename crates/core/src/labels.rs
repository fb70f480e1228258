//! Label rules.

use std::collections::BTreeMap;

use gantry_errdefs::{Error, Result};

use crate::Reference;

/// Labels of an object, in key order.
pub type Labels = BTreeMap<String, String>;

/// Longest label, key and value together, in bytes (containerd's bound).
pub const LABEL_LEN_MAX: usize = 4096;

/// Prefix of the labels that name the repositories a blob came from, by registry.
const SOURCE_PREFIX: &str = "containerd.io/distribution.source.";

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

/// Key of the label that names the repositories of `host` a blob came from.
pub fn source_label(host: &str) -> String {
    format!("{SOURCE_PREFIX}{host}")
}

/// The repositories that a source label lists.
pub fn source_repositories(value: &str) -> Vec<String> {
    value.split(',').filter(|r| !r.is_empty()).map(str::to_owned).collect()
}

/// Adds what is known of a blob's origin to `labels`; `current` are those it has. A list that grew
/// too long stays as it is.
pub fn add_source(labels: &mut Labels, current: &Labels, origin: &Reference) {
    let key = source_label(origin.host());
    let mut list = source_repositories(current.get(&key).map_or("", String::as_str));
    list.push(origin.path().to_owned());
    list.sort();
    list.dedup();
    let value = list.join(",");
    if validate(&key, &value).is_ok() {
        labels.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_listed_once_and_in_order() {
        let origin = |path: &str| Reference::parse(&format!("r.io/{path}:1")).unwrap();
        let mut labels = Labels::new();
        add_source(&mut labels, &Labels::new(), &origin("b"));
        let current = labels.clone();
        add_source(&mut labels, &current, &origin("a"));
        let current = labels.clone();
        add_source(&mut labels, &current, &origin("b"));
        let value = &labels[&source_label("r.io")];
        assert_eq!(source_repositories(value), ["a", "b"]);
        let full = Labels::from([(source_label("r.io"), "x,".repeat(LABEL_LEN_MAX / 2))]);
        let mut labels = Labels::new();
        add_source(&mut labels, &full, &origin(&"y".repeat(200)));
        assert_eq!(labels.len(), 1, "repeated names are one");
        let long: Vec<String> = (0..LABEL_LEN_MAX / 4).map(|n| format!("{n:04}")).collect();
        let full = Labels::from([(source_label("r.io"), long.join(","))]);
        let mut labels = Labels::new();
        add_source(&mut labels, &full, &origin("a"));
        assert_eq!(labels, Labels::new());
    }
}
