//! Pulls an image and tells what it is.

use gantry_client::{Client, PullOptions, Result};

pub(crate) async fn example(client: &Client, reference: &str) -> Result<u32> {
    let mut options = PullOptions::new(reference);
    if reference.starts_with("127.0.0.1") {
        options = options.plain_http();
    }
    let image = client.pull_with(options, |step| eprintln!("{} {}", step.event, step.name)).await?;
    let config = image.config().await?;
    println!("{} {} {} bytes", image.name(), image.target().digest, image.size().await?);
    println!("{}/{}", config.platform.os, config.platform.architecture);
    Ok(0)
}
