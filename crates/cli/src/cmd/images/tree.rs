//! The content an image needs for one platform.

use gantry_client::Client;
use gantry_core::Descriptor;
use gantry_core::image::Document;
use gantry_core::platforms::Matcher;
use gantry_errdefs::Result;

/// What an image needs for one platform, and whether it is there.
pub(super) struct Tree {
    pub(super) present: Vec<Descriptor>,
    pub(super) missing: Vec<Descriptor>,
    /// Whether a manifest was reached.
    pub(super) readable: bool,
    /// The entries of the index, when the top is one.
    pub(super) entries: Vec<Descriptor>,
}

impl Tree {
    pub(super) async fn read(
        client: &Client,
        target: &Descriptor,
        matcher: &Matcher,
    ) -> Result<Self> {
        let mut tree =
            Self { present: Vec::new(), missing: Vec::new(), readable: false, entries: Vec::new() };
        let mut next = Some(target.clone());
        while let Some(current) = next.take() {
            let bytes = match client.content().read(&current.digest).await {
                Ok(bytes) => bytes,
                Err(e) if e.is_not_found() => {
                    tree.missing.push(current);
                    break;
                }
                Err(e) => return Err(e),
            };
            let document = Document::parse(&current, &bytes);
            tree.present.push(current);
            match document {
                Ok(Document::Index(index)) => {
                    if tree.entries.is_empty() {
                        tree.entries.clone_from(&index.manifests);
                    }
                    next = index.ranked(matcher).first().map(|(_, entry)| (*entry).clone());
                }
                Ok(document @ Document::Manifest(_)) => {
                    tree.readable = true;
                    for (_, child) in document.children() {
                        match client.content().info(&child.digest).await {
                            Ok(_) => tree.present.push(child.clone()),
                            Err(e) if e.is_not_found() => tree.missing.push(child.clone()),
                            Err(e) => return Err(e),
                        }
                    }
                }
                Err(_) => break,
            }
        }
        Ok(tree)
    }

    pub(super) fn available(&self) -> i64 {
        self.present.iter().map(|d| d.size).sum()
    }

    pub(super) fn required(&self) -> i64 {
        self.available() + self.missing.iter().map(|d| d.size).sum::<i64>()
    }
}
