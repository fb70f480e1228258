//! Durations as Go writes them, such as `1m30s` or `100ms`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use gantry_errdefs::{Error, Result};
use serde::{Deserialize, Serialize};

/// A duration that reads and prints in Go's notation; the text is kept as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GoDuration {
    text: String,
    value: Duration,
}

impl GoDuration {
    /// The value.
    pub fn duration(&self) -> Duration {
        self.value
    }
}

impl FromStr for GoDuration {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad =
            || Error::invalid_argument(format!("duration {text:?}: expect a form like 1m30s"));
        if text == "0" {
            return Ok(Self { text: text.to_owned(), value: Duration::ZERO });
        }
        let mut rest = text.strip_prefix('+').unwrap_or(text);
        if rest.is_empty() {
            return Err(bad());
        }
        let mut nanos = 0f64;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
            let number: f64 = rest[..digits].parse().map_err(|_| bad())?;
            rest = &rest[digits..];
            let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
            nanos += number * nanos_of(&rest[..unit]).ok_or_else(bad)?;
            rest = &rest[unit..];
        }
        let value = Duration::try_from_secs_f64(nanos / 1e9).map_err(|_| bad())?;
        Ok(Self { text: text.to_owned(), value })
    }
}

fn nanos_of(unit: &str) -> Option<f64> {
    Some(match unit {
        "ns" => 1.0,
        "us" | "µs" | "μs" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        "m" => 60e9,
        "h" => 3600e9,
        _ => return None,
    })
}

impl TryFrom<String> for GoDuration {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<GoDuration> for String {
    fn from(d: GoDuration) -> Self {
        d.text
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
