//! The terminal this program runs on, in raw mode while a container has it.

use std::io::IsTerminal;

use gantry_client::Process;
use gantry_errdefs::{Error, Result};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};

/// Raw mode, ended on drop.
pub(crate) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Puts standard input into raw mode.
    ///
    /// # Errors
    /// FailedPrecondition when standard input or output is no terminal.
    pub(crate) fn enter() -> Result<Self> {
        let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
        if !stdin.is_terminal() || !stdout.is_terminal() {
            let why = "the provided file is not a console";
            return Err(Error::failed_precondition(why));
        }
        let io = |e: rustix::io::Errno| Error::io("terminal", e.into());
        let before = tcgetattr(&stdin).map_err(io)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).map_err(io)?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.before);
    }
}

/// Gives the process the size of this terminal, now and whenever it changes; never returns.
pub(crate) async fn follow_size(process: &Process) {
    let Ok(mut changed) = signal(SignalKind::window_change()) else {
        return std::future::pending().await;
    };
    loop {
        if let Ok(size) = tcgetwinsize(std::io::stdout()) {
            let (width, height) = (u32::from(size.ws_col), u32::from(size.ws_row));
            if let Err(e) = process.resize(width, height).await {
                tracing::debug!(error = %e, "resizing the terminal");
            }
        }
        if changed.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}
