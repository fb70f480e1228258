//! Runs a daemon inside this process, without a socket for clients.

use std::path::Path;

use gantry_client::{Client, Error, Result};
use gantry_daemon::Daemon;
use gantry_daemon::config::Config;

pub(crate) async fn example(dir: &Path) -> Result<u32> {
    let config = Config::private(dir.join("root"), dir.join("state"));
    let daemon = Daemon::start_embedded(config).await?;
    let client = Client::from_channel(daemon.channel()).in_namespace("embedded");
    if !client.is_serving().await? {
        return Err(Error::unavailable("the daemon of this process"));
    }
    println!("{}", client.version().await?.version);
    for plugin in client.introspection().plugins(&[]).await? {
        println!("{} {}", plugin.kind, plugin.id);
    }
    drop(client);
    daemon.shutdown().await;
    Ok(0)
}
