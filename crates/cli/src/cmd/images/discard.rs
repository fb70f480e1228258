//! Letting go of layers that are unpacked.

use gantry_client::Client;
use gantry_core::Descriptor;
use gantry_core::image::{Document, INDEX_DEPTH_MAX};
use gantry_errdefs::{Error, Result};

use crate::cmd::content::prune::without_layers;

/// Takes from the manifests of the image `name` what keeps their layers in the content store: what
/// is not used otherwise goes with the next collection. The image runs on from its snapshots, but
/// cannot be pushed or exported any more.
///
/// # Errors
/// NotFound for the image.
pub(crate) async fn layers(client: &Client, name: &str) -> Result<()> {
    let content = client.content();
    let mut todo: Vec<(Descriptor, usize)> = vec![(client.images().get(name).await?.target, 0)];
    while let Some((at, depth)) = todo.pop() {
        if depth > INDEX_DEPTH_MAX {
            return Err(Error::invalid_argument(format!(
                "index {}: nested deeper than {INDEX_DEPTH_MAX}",
                at.digest
            )));
        }
        let info = match content.info(&at.digest).await {
            // Another platform's, which was not taken.
            Err(e) if e.is_not_found() && depth > 0 => continue,
            info => info?,
        };
        match Document::parse(&at, &content.read(&at.digest).await?)? {
            Document::Index(index) => {
                let documents = index.manifests.into_iter().filter(Descriptor::is_document);
                todo.extend(documents.map(|child| (child, depth + 1)));
            }
            Document::Manifest(_) => {
                let cleared = without_layers(info.labels);
                if !cleared.is_empty() {
                    content.set_labels(&at.digest, &cleared).await?;
                }
            }
        }
    }
    Ok(())
}
