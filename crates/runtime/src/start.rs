//! A shim from its program to its connection, and away again: for tasks and sandboxes alike.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use gantry_core::Any;
use gantry_errdefs::{Error, Result, ResultExt};
use gantry_ttrpc::Client;

use crate::binary::{Binary, Versions};
use crate::bootstrap::Bootstrap;
use crate::bundle::Bundle;
use crate::config::Config;
use crate::launch::Launched;
use crate::log::LogReader;
use crate::manager::blocking;
use crate::names;

/// How long to wait before connecting again to a shim that does not listen yet.
const CONNECT_RETRY: Duration = Duration::from_millis(10);

/// A shim that was started, or joined, and is connected to.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) bootstrap: Bootstrap,
    pub(crate) connection: Client,
    /// The process, as a pidfd, where the start told it.
    pub(crate) process: Option<OwnedFd>,
    pub(crate) log: LogReader,
}

/// The shim program of `runtime`.
///
/// # Errors
/// InvalidArgument for a name that is none, NotFound for a program that is not installed.
pub(crate) async fn program(config: &Arc<Config>, runtime: &str) -> Result<PathBuf> {
    let (runtime, config) = (runtime.to_owned(), Arc::clone(config));
    blocking(move || {
        let path = std::env::var("PATH").unwrap_or_default();
        names::resolve(&runtime, config.shim_dir.as_deref(), &path)
    })
    .await
}

impl Binary<'_> {
    /// Starts the shim of a new bundle as [`Binary::start`] does, unless there is one to be
    /// `joined`, and connects to it. The bundle has all that a later daemon needs to find it.
    ///
    /// # Errors
    /// The program's and the connection's; a shim may have been left behind then.
    pub(crate) async fn start_connected(
        &self,
        versions: &Versions,
        joined: Option<Bootstrap>,
        options: Option<&Any>,
        alone: bool,
    ) -> Result<Started> {
        let (bundle, program) = (self.bundle.clone(), self.program.to_owned());
        blocking(move || bundle.set_shim_program(&program)).await?;
        // The fifo has to be there before the shim looks for it.
        let log = LogReader::open(&self.bundle.log(), self.id)?;
        let Launched { bootstrap, process } = match joined {
            Some(bootstrap) => Launched { bootstrap, process: None },
            None => self.start(versions, options, alone).await?,
        };
        let (saved, at) = (bootstrap.clone(), self.bundle.path.clone());
        blocking(move || saved.save(&at)).await?;
        let connection = connect(&bootstrap, self.config.deadlines.connect_new);
        let connection = connection.await.context(|| "failed to start shim")?;
        Ok(Started { bootstrap, connection, process, log })
    }

    /// Lets the program clean up after a shim that did not start or is gone, whose end nobody
    /// asks for, and removes the bundle.
    pub(crate) async fn remove(&self) {
        if let Err(err) = self.delete().await {
            tracing::debug!(id = self.id, %err, "clean-up after a shim");
        }
        remove_bundle(self.id, self.bundle).await;
    }
}

/// Removes a bundle; what cannot be removed is tried again at the next start.
pub(crate) async fn remove_bundle(id: &str, bundle: &Bundle) {
    let bundle = bundle.clone();
    let removed = blocking(move || {
        bundle.remove_stale_socket();
        bundle.delete()
    });
    if let Err(err) = removed.await {
        tracing::warn!(id, %err, "bundle not removed");
    }
}

/// Connects to a shim that has just been started.
async fn connect(bootstrap: &Bootstrap, deadline: Duration) -> Result<Client> {
    let attempts = async {
        loop {
            match Client::connect(&bootstrap.address) {
                Err(err) if err.is_unavailable() => tokio::time::sleep(CONNECT_RETRY).await,
                outcome => return outcome,
            }
        }
    };
    tokio::time::timeout(deadline, attempts).await.unwrap_or_else(|_| {
        Err(Error::unavailable(format!(
            "shim at {}: not listening after {deadline:?}",
            bootstrap.address
        )))
    })
}
