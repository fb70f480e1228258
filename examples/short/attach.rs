//! Takes up the streams of a container that another program started.

use gantry_client::{Client, Result};
use tokio::io::AsyncWriteExt as _;

pub(crate) async fn example(client: &Client, container: &str) -> Result<u32> {
    let task = client.container(container).await?.task().await?;
    let mut streams = task.attach().await?;
    if let Some(mut stdin) = streams.stdin.take() {
        let copied = tokio::io::copy(&mut tokio::io::stdin(), &mut stdin).await;
        let flushed = stdin.flush().await;
        copied.and(flushed.map(|()| 0)).map_err(|e| gantry_client::Error::io("input", e))?;
    }
    // The shim holds the other end open; this ends the process' input.
    task.close_stdin().await?;
    streams.copy(tokio::io::empty(), tokio::io::stdout(), tokio::io::stderr()).await?;
    Ok(task.wait().await?.code)
}
