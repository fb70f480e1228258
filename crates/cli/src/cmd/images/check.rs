//! `images check`.

use gantry_core::Descriptor;
use gantry_core::platforms::Matcher;
use gantry_errdefs::Result;

use super::tree::Tree;
use crate::output::{self, Cell, Table};
use crate::session::Session;

pub(super) async fn run(
    session: &Session,
    quiet: bool,
    snapshotter: &str,
    filters: &[String],
) -> Result<()> {
    let client = &session.client;
    let mut table = Table::narrow(&["REF", "TYPE", "DIGEST", "STATUS", "SIZE", "UNPACKED"]);
    let mut images = client.images().list(filters).await?;
    images.sort_by(|a, b| a.name.cmp(&b.name));
    for image in images {
        let tree = Tree::read(client, &image.target, &Matcher::host()).await?;
        // As ctr counts: what the manifest names, without the manifest itself.
        let parts = |blobs: &[Descriptor]| blobs.iter().filter(|b| !b.is_document()).count();
        let have = parts(&tree.present);
        let all = have + parts(&tree.missing);
        let status = match (tree.readable, tree.missing.is_empty()) {
            (false, _) => "unavailable (0/?)".to_owned(),
            (true, true) => format!("complete ({have}/{all})"),
            (true, false) => format!("incomplete ({have}/{all})"),
        };
        let complete = tree.readable && tree.missing.is_empty();
        let unpacked = match client.resolve_image(&image.name, None).await {
            Ok(resolved) => client.is_unpacked(&resolved, snapshotter).await?,
            Err(_) => false,
        };
        if quiet {
            if complete {
                output::line(&image.name);
            }
            continue;
        }
        let size = if tree.readable {
            format!("{}/{}", output::bytes(tree.available()), output::bytes(tree.required()))
        } else {
            "-".to_owned()
        };
        table.row([
            image.name.into(),
            image.target.media_type.into(),
            image.target.digest.as_str().into(),
            status.into(),
            size.into(),
            Cell::new(unpacked.to_string(), unpacked),
        ]);
    }
    if !quiet {
        table.print(session.format);
    }
    Ok(())
}
