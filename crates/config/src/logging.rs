//! The words of `[debug]`.

use gantry_errdefs::{Error, Result};
use tracing::level_filters::LevelFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One readable line per event.
    Text,
    /// One JSON object per event.
    Json,
}

/// The level behind a configured name; the empty name is info.
pub(super) fn level(name: &str) -> Result<LevelFilter> {
    Ok(match name {
        "trace" => LevelFilter::TRACE,
        "debug" => LevelFilter::DEBUG,
        "" | "info" => LevelFilter::INFO,
        "warn" | "warning" => LevelFilter::WARN,
        "error" | "fatal" | "panic" => LevelFilter::ERROR,
        _ => {
            return Err(Error::invalid_argument(format!(
                "log level {name:?}: expect trace, debug, info, warn, error, fatal or panic"
            )));
        }
    })
}

/// The format behind a configured name; the empty name is text.
pub(super) fn format(name: &str) -> Result<LogFormat> {
    match name {
        "" | "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(Error::invalid_argument(format!("log format {name:?}: expect text or json"))),
    }
}
