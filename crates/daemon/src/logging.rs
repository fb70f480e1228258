//! Log output: lines on standard error, as text or JSON.

use gantry_errdefs::{Error, Result};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{Debug, LogFormat};

/// Installs the process-wide subscriber; for the program, never for embedded use.
///
/// # Errors
/// InvalidArgument for unknown names, FailedPrecondition when a subscriber is installed already.
pub fn init(debug: &Debug) -> Result<()> {
    let level = debug.log_level()?;
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
    match debug.log_format()? {
        LogFormat::Text => registry.with(line).try_init(),
        LogFormat::Json => registry.with(line.json()).try_init(),
    }
    .map_err(|e| Error::failed_precondition(format!("logging: {e}")))
}
