//! Freezes a container into an image: memory, spec, and what it changed of its root filesystem.

use gantry_client::{CheckpointImageOptions, Client, Result};

pub(crate) async fn example(client: &Client, container: &str) -> Result<u32> {
    let task = client.container(container).await?.task().await?;
    let checkpoint = task.checkpoint_image(CheckpointImageOptions::default().exit()).await?;
    println!("{}", checkpoint.name());
    Ok(0)
}
