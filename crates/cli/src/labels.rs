//! Labels and other pairs on the command line.

use gantry_core::Labels;
use gantry_errdefs::{Error, Result};

/// Parses `key=value` texts; a key alone has an empty value.
pub(crate) fn parse(texts: &[String]) -> Labels {
    texts
        .iter()
        .map(|t| {
            let (key, value) = t.split_once('=').unwrap_or((t, ""));
            (key.to_owned(), value.to_owned())
        })
        .collect()
}

/// Parses `key=value` texts that must have a value.
pub(crate) fn parse_strict(what: &str, texts: &[String]) -> Result<Labels> {
    if let Some(bad) = texts.iter().find(|t| !t.contains('=')) {
        return Err(Error::invalid_argument(format!("{what} {bad:?}: want key=value")));
    }
    Ok(parse(texts))
}
