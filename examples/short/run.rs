//! Runs a container of an image, shows its output, and removes it.

use gantry_client::{Client, FifoSet, Result};

pub(crate) async fn example(client: &Client, image: &str, args: &[String]) -> Result<u32> {
    let image = client.image(image).await?;
    let id = format!("short-{}", std::process::id());
    let args = args.to_vec();
    let container = client
        .container_builder(&id)
        .from_image(&image)
        .new_snapshot(&id)
        .spec_option(|spec| spec.args(args))
        .create()
        .await?;
    let fifos = FifoSet::create(None, &id, false, false)?;
    // Opened before there is a process, so that nothing it writes is missed.
    let streams = fifos.stdio().open()?;
    let task = container.new_task(fifos.stdio()).create().await?;
    task.start().await?;
    streams.copy(tokio::io::empty(), tokio::io::stdout(), tokio::io::stderr()).await?;
    let exit = task.wait().await?;
    task.delete().await?;
    container.delete(true).await?;
    Ok(exit.code)
}
