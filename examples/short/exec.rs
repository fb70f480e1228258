//! Runs a command in a container that runs already.

use gantry_client::{Client, FifoSet, Result};

pub(crate) async fn example(client: &Client, container: &str, args: &[String]) -> Result<u32> {
    let container = client.container(container).await?;
    let task = container.task().await?;
    // The command gets user, environment and rights of the container's own process.
    let mut process = container.spec()?.process().clone().unwrap_or_default();
    process.set_args(Some(args.to_vec())).set_terminal(Some(false));
    let id = format!("exec-{}", std::process::id());
    let fifos = FifoSet::create(None, &id, false, false)?;
    let streams = fifos.stdio().open()?;
    let exec = task.exec(&id, &process, fifos.stdio()).await?;
    exec.start().await?;
    streams.copy(tokio::io::empty(), tokio::io::stdout(), tokio::io::stderr()).await?;
    let exit = exec.wait().await?;
    exec.delete().await?;
    Ok(exit.code)
}
