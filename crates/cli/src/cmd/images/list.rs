//! `images list`.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt};
use gantry_client::{Client, ImageRecord};
use gantry_core::platforms::{self, Matcher};
use gantry_core::{Digest, media_types};
use gantry_errdefs::Result;

use super::tree::Tree;
use crate::output::{self, Cell, Table};
use crate::session::Session;

/// Images looked into at once: enough to keep the daemon busy while answers are on their way.
const LOOKUPS_MAX: usize = 32;

/// What the columns show of an image's content.
struct Facts {
    size: i64,
    platforms: Vec<String>,
}

pub(super) async fn run(session: &Session, quiet: bool, filters: &[String]) -> Result<()> {
    let mut images = session.client.images().list(filters).await?;
    images.sort_by(|a, b| a.name.cmp(&b.name));
    if quiet {
        images.iter().for_each(|i| output::line(&i.name));
        return Ok(());
    }
    let facts = facts_of(&session.client, &images).await?;
    let mut table = Table::narrow(&["REF", "TYPE", "DIGEST", "SIZE", "PLATFORMS", "LABELS"]);
    for image in images {
        let Facts { size, platforms } = &*facts[&image.target.digest];
        let shown = if platforms.is_empty() { "-".to_owned() } else { platforms.join(",") };
        table.row([
            image.name.into(),
            image.target.media_type.into(),
            image.target.digest.as_str().into(),
            output::size_cell(*size),
            Cell::new(shown, platforms.clone()),
            output::labels_cell(&image.labels),
        ]);
    }
    table.print(session.format);
    Ok(())
}

/// The facts of every target; names that share one share the look-up.
async fn facts_of(client: &Client, images: &[ImageRecord]) -> Result<HashMap<Digest, Arc<Facts>>> {
    let targets: HashMap<&Digest, &ImageRecord> =
        images.iter().map(|image| (&image.target.digest, image)).collect();
    let mut found = HashMap::with_capacity(targets.len());
    let mut lookups = stream::iter(targets)
        .map(|(digest, image)| async move { (digest, facts(client, image).await) })
        .buffer_unordered(LOOKUPS_MAX);
    while let Some((digest, facts)) = lookups.next().await {
        found.insert(digest.clone(), Arc::new(facts?));
    }
    Ok(found)
}

async fn facts(client: &Client, image: &ImageRecord) -> Result<Facts> {
    let tree = Tree::read(client, &image.target, &Matcher::host()).await?;
    let platforms = platforms_of(client, image, &tree).await;
    Ok(Facts { size: tree.required(), platforms })
}

async fn platforms_of(client: &Client, image: &ImageRecord, tree: &Tree) -> Vec<String> {
    if media_types::is_index(&image.target.media_type) {
        let mut names: Vec<String> = tree
            .entries
            .iter()
            .filter_map(|d| d.platform.as_ref())
            .map(|p| platforms::format(&platforms::normalize(p)))
            .collect();
        names.sort();
        names.dedup();
        if !names.is_empty() {
            return names;
        }
    }
    // A single manifest says its platform in its config.
    let resolved = client.resolve_target(&image.name, &image.target, &Matcher::all()).await;
    resolved.map_or_else(
        |_| Vec::new(),
        |r| vec![platforms::format(&platforms::normalize(&r.config.platform.into()))],
    )
}
