//! Log output: lines on standard error, as text or JSON.

use gantry_errdefs::{Error, Result};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::Debug;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One readable line per event.
    Text,
    /// One JSON object per event.
    Json,
}

/// The level behind a configured name; the empty name is info.
///
/// # Errors
/// InvalidArgument for any other word.
pub fn parse_level(name: &str) -> Result<LevelFilter> {
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
///
/// # Errors
/// InvalidArgument for any other word.
pub fn parse_format(name: &str) -> Result<Format> {
    match name {
        "" | "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        _ => Err(Error::invalid_argument(format!("log format {name:?}: expect text or json"))),
    }
}

/// Installs the process-wide subscriber; for the program, never for embedded use.
///
/// # Errors
/// InvalidArgument for unknown names, FailedPrecondition when a subscriber is installed already.
pub fn init(debug: &Debug) -> Result<()> {
    let level = parse_level(&debug.level)?;
    // The HTTP/2 and HTTP layers log every frame at debug: of no use unless one asks for trace.
    let filter = if level == LevelFilter::TRACE {
        Targets::new().with_default(level)
    } else {
        Targets::new().with_default(level).with_targets(
            ["h2", "hyper", "hyper_util", "tower", "reqwest", "rustls"]
                .map(|t| (t, LevelFilter::WARN)),
        )
    };
    let registry = tracing_subscriber::registry().with(filter);
    let line = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    match parse_format(&debug.format)? {
        Format::Text => registry.with(line).try_init(),
        Format::Json => registry.with(line.json()).try_init(),
    }
    .map_err(|e| Error::failed_precondition(format!("logging: {e}")))
}
