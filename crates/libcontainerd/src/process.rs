//! Processes: a container's own and execs.

use std::path::{Path, PathBuf};

use gantry_client::{ExitStatus, KillOptions, ProcessState};
use gantry_errdefs::Result;

use crate::client::Client;
use crate::stdio::Closed;

/// A process of a container.
#[derive(Clone, Debug)]
pub struct Process {
    pub(crate) client: Client,
    pub(crate) inner: gantry_client::Process,
    pub(crate) bundle: PathBuf,
    pub(crate) pid: u32,
    pub(crate) closed: Closed,
}

impl Process {
    /// Pid on the host; 0 before it runs.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Id of the exec; that of the container for its own process.
    pub fn id(&self) -> &str {
        match self.inner.exec_id() {
            "" => self.inner.container_id(),
            exec => exec,
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// NotFound when it is over or not there.
    pub async fn kill(&self, signal: u32) -> Result<()> {
        self.inner.kill(signal, KillOptions::default()).await
    }

    /// Sets the size of the terminal, in characters.
    ///
    /// # Errors
    /// NotFound.
    pub async fn resize(&self, width: u32, height: u32) -> Result<()> {
        self.inner.resize(width, height).await
    }

    /// Ends the input.
    ///
    /// # Errors
    /// NotFound.
    pub async fn close_stdin(&self) -> Result<()> {
        self.inner.close_stdin().await
    }

    /// The state.
    ///
    /// # Errors
    /// NotFound.
    pub async fn state(&self) -> Result<ProcessState> {
        self.inner.state().await
    }

    /// Waits for the end, over restarts of the daemon.
    ///
    /// # Errors
    /// NotFound; Unavailable when the daemon stays away.
    pub async fn wait(&self) -> Result<ExitStatus> {
        self.inner.wait().await
    }

    /// Removes the process, which must be over, and its FIFOs; returns how it ended.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition while it runs.
    pub async fn delete(&self) -> Result<ExitStatus> {
        let exit = self.inner.delete().await?;
        self.removed(&exit);
        Ok(exit)
    }

    pub(crate) async fn force_delete(&self) -> Result<ExitStatus> {
        let exit = self.inner.delete_with_kill().await?;
        self.removed(&exit);
        Ok(exit)
    }

    fn removed(&self, exit: &ExitStatus) {
        let (container, exec) = (self.inner.container_id(), self.inner.exec_id());
        self.client.inner.events.ended(container, exec, exit);
        let name = if exec.is_empty() { crate::types::INIT_PROCESS } else { exec };
        Self::remove_fifos(&self.bundle, name);
    }

    /// Starts the process.
    pub(crate) async fn start_inner(&mut self) -> Result<u32> {
        self.pid = self.inner.start().await?;
        if self.closed.is_set() {
            // The engine ended the input before there was a process to tell.
            self.inner.close_stdin().await?;
        }
        Ok(self.pid)
    }

    /// Removes the FIFOs of process `name`.
    pub(crate) fn remove_fifos(bundle: &Path, name: &str) {
        for stream in ["stdin", "stdout", "stderr"] {
            let _ = std::fs::remove_file(bundle.join(format!("{name}-{stream}")));
        }
    }
}
