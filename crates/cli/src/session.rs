//! What a command works with: a client, the output format, maybe a daemon of our own.

use gantry_client::Client;
use gantry_daemon::config::Config;
use gantry_daemon::{Daemon, Running};
use gantry_errdefs::Result;

use crate::cli::{Global, default_address};
use crate::output::Format;

/// The surroundings of one command.
pub(crate) struct Session {
    /// The daemon, in the namespace of the command line.
    pub(crate) client: Client,
    /// How lists are shown.
    pub(crate) format: Format,
    /// Name the program was started under.
    pub(crate) program: String,
    embedded: Option<Running>,
}

impl Session {
    /// Connects, or starts the embedded daemon.
    pub(crate) async fn open(global: &Global, program: &str) -> Result<Self> {
        let (client, embedded) = if global.embedded {
            embed(global).await?
        } else {
            let address = global.address.clone().unwrap_or_else(|| default_address(program).into());
            // A daemon that went away is waited for no longer than one that is not there yet.
            let mut builder = Client::builder(address)
                .connect_timeout(global.connect_timeout)
                .reconnect_patience(global.connect_timeout);
            if !global.timeout.is_zero() {
                builder = builder.timeout(global.timeout);
            }
            (builder.build()?, None)
        };
        Ok(Self {
            client: client.in_namespace(&global.namespace),
            format: global.format,
            program: program.to_owned(),
            embedded,
        })
    }

    /// Ends the embedded daemon, if there is one. Containers live on in their shims, and the
    /// next one finds them.
    pub(crate) async fn close(self) {
        drop(self.client);
        if let Some(running) = self.embedded {
            running.shutdown().await;
        }
    }
}

/// The daemon of the embedded root: the one that another `gantry --embedded` runs right now, else
/// one in this process. It listens on a socket below the root for just that reason.
async fn embed(global: &Global) -> Result<(Client, Option<Running>)> {
    let root = &global.embedded_root;
    let config = Config::private(root.join("root"), root.join("state"));
    let client = Client::connect(config.address())?;
    if client.is_serving().await.unwrap_or(false) {
        return Ok((client, None));
    }
    let running = Daemon::start(config).await.map_err(|e| e.context("embedded daemon"))?;
    Ok((Client::from_channel(running.channel()), Some(running)))
}
