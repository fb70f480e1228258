//! `images list`.

use gantry_errdefs::Result;

use super::facts::{self, Facts};
use crate::output::{self, Cell, Table};
use crate::session::Session;

pub(super) async fn run(session: &Session, quiet: bool, filters: &[String]) -> Result<()> {
    let mut images = session.client.images().list(filters).await?;
    images.sort_by(|a, b| a.name.cmp(&b.name));
    if quiet {
        images.iter().for_each(|i| output::line(&i.name));
        return Ok(());
    }
    let facts = facts::of(&session.client, &images).await?;
    let mut table = Table::narrow(&["REF", "TYPE", "DIGEST", "SIZE", "PLATFORMS", "LABELS"]);
    for image in images {
        let Facts { size, platforms } = &facts[&image.target.digest];
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
