//! Compressing layers that an archive holds as plain tars.

use std::io;

use gantry_archive::{Compression, Compressor};
use gantry_content::WriterOptions;
use gantry_core::{Context, Labels};
use gantry_errdefs::{Result, ResultExt};
use gantry_layout::Stored;
use gantry_metadata::Db;

use crate::content;
use crate::differ::{LABEL_UNCOMPRESSED, Pieces, joined, store_pieces};
use crate::unfinished::Unfinished;
use crate::unpack::unique;

/// Writes the blob `plain`, a tar, into the content store once more, in gzip. The plain one is left
/// for the garbage collector.
///
/// # Errors
/// NotFound for a missing blob; the content store's.
pub(super) async fn gzip(db: &Db, ctx: &Context, plain: &Stored) -> Result<Stored> {
    let what = || format!("compressing layer {}", plain.digest);
    let content = db.content();
    let mut reader = content.reader(ctx, &plain.digest).await?.into_blocking();
    let options = WriterOptions { reference: unique("compress"), ..WriterOptions::default() };
    let (unfinished, mut writer) = Unfinished::open(db, ctx, options).await?;
    let (mut pieces, mut arriving) = Pieces::new();
    let work = tokio::task::spawn_blocking(move || {
        let mut out = Compressor::new(&mut pieces, Compression::Gzip).context(|| "gzip")?;
        io::copy(&mut reader, &mut out).context(|| "gzip")?;
        out.finish().and_then(io::Write::flush).context(|| "gzip")
    });
    let stored = store_pieces(&mut writer, &mut arriving).await;
    // When storing failed, the thread finds the channel closed and ends.
    drop(arriving);
    let compressed = joined(work.await);
    stored.context(what)?;
    compressed.context(what)?;
    let (digest, size) = (writer.digest(), writer.status().offset);
    let labels = Labels::from([(LABEL_UNCOMPRESSED.to_owned(), plain.digest.to_string())]);
    match unfinished.end(content::commit(writer, size, &digest, labels.clone())).await {
        Err(err) if err.is_already_exists() => {
            let path = format!("labels.{LABEL_UNCOMPRESSED}");
            content.update(ctx, &digest, labels, &[path]).await?;
        }
        committed => drop(committed?),
    }
    Ok(Stored { digest, size, compression: Compression::Gzip })
}
