//! Making a layer of what changed between two mounts.

use std::io::{self, BufWriter, Write};

use bytes::Bytes;
use gantry_archive::{Changes, Compression, DiffOptions, Diffed};
use gantry_content::WriterOptions;
use gantry_core::{Context, Descriptor, Labels, media_types};
use gantry_errdefs::{Error, Result};
use gantry_metadata::Content;
use gantry_mount::{Mount, TempRoot};
use tokio::sync::mpsc;

use super::joined;
use super::overlay::{Overlay, view_lowers};

/// Bytes handed from the archiver to the content store at a time.
const CHUNK_LEN: usize = 256 << 10;

/// Chunks under way between the two.
const CHUNKS_MAX: usize = 4;

/// Label of a compressed layer: the digest of its plain tar.
const UNCOMPRESSED_LABEL: &str = "containerd.io/uncompressed";

/// What a client wants made.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) left: Vec<Mount>,
    pub(super) right: Vec<Mount>,
    pub(super) media_type: String,
    pub(super) reference: String,
    pub(super) labels: Labels,
    pub(super) source_date_epoch: Option<i64>,
}

/// Makes the layer and stores it.
///
/// # Errors
/// Unimplemented for another media type than the three of OCI layers; else as
/// [`gantry_archive::diff`] and the content store.
pub(super) async fn compare(
    content: &Content,
    ctx: &Context,
    wanted: Wanted,
    temp: &TempRoot,
) -> Result<Descriptor> {
    let (media_type, compression) = format_of(&wanted.media_type)?;
    let options = DiffOptions {
        compression,
        source_date_epoch: wanted.source_date_epoch,
        ..DiffOptions::default()
    };
    let (left, right, temp) = (wanted.left, wanted.right, temp.clone());
    let made = store(content, ctx, &wanted.reference, wanted.labels, move |writer| {
        archive(&left, &right, &temp, writer, &options)
    });
    let diffed = made.await?;
    let size = i64::try_from(diffed.size).unwrap_or(i64::MAX);
    Ok(Descriptor::new(media_type, diffed.digest, size))
}

fn format_of(media_type: &str) -> Result<(&'static str, Compression)> {
    match media_type {
        "" | media_types::OCI_LAYER_GZIP => Ok((media_types::OCI_LAYER_GZIP, Compression::Gzip)),
        media_types::OCI_LAYER => Ok((media_types::OCI_LAYER, Compression::None)),
        media_types::OCI_LAYER_ZSTD => Ok((media_types::OCI_LAYER_ZSTD, Compression::Zstd)),
        other => Err(Error::unimplemented(format!("unsupported diff media type: {other}"))),
    }
}

/// Stores what `produce` writes, as a blob with `labels` and that of its plain digest.
///
/// # Errors
/// That of `produce` or of the store; an ingest of our own naming is dropped then.
pub(crate) async fn store<P>(
    content: &Content,
    ctx: &Context,
    reference: &str,
    mut labels: Labels,
    produce: P,
) -> Result<Diffed>
where
    P: FnOnce(&mut dyn Write) -> Result<Diffed> + Send + 'static,
{
    let own_name = reference.is_empty();
    let reference = if own_name { fresh_reference() } else { reference.to_owned() };
    let options = WriterOptions { reference: reference.clone(), ..WriterOptions::default() };
    let mut writer = content.writer(ctx, options).await?;
    if writer.status().offset > 0 {
        writer.truncate(0).await?;
    }
    let (chunks, mut incoming) = mpsc::channel::<Bytes>(CHUNKS_MAX);
    let producing = tokio::task::spawn_blocking(move || {
        let mut out = BufWriter::with_capacity(CHUNK_LEN, ChunkWriter { chunks });
        let diffed = produce(&mut out)?;
        out.flush().map_err(|e| Error::io("layer", e))?;
        Ok::<_, Error>(diffed)
    });
    let mut stored = Ok(());
    while let Some(chunk) = incoming.recv().await {
        stored = writer.write(chunk).await;
        if stored.is_err() {
            break;
        }
    }
    // Closed, so that a producer whose bytes cannot be stored ends as well.
    drop(incoming);
    let produced = producing.await.map_err(joined)?;
    let diffed = match stored.and(produced) {
        Ok(diffed) => diffed,
        Err(err) => {
            drop(writer);
            if own_name && let Err(e) = content.abort(ctx, &reference).await {
                tracing::warn!(%reference, error = %e, "a failed ingest stays until it expires");
            }
            return Err(err);
        }
    };
    if diffed.digest != diffed.diff_id {
        labels.insert(UNCOMPRESSED_LABEL.to_owned(), diffed.diff_id.to_string());
    }
    match writer.commit(diffed.size, Some(&diffed.digest), labels.clone()).await {
        Ok(_) => {}
        Err(e) if e.is_already_exists() => keep_label(content, ctx, &diffed, labels).await?,
        Err(e) => return Err(e),
    }
    Ok(diffed)
}

/// A blob that was there before may lack the label of its plain digest.
async fn keep_label(
    content: &Content,
    ctx: &Context,
    diffed: &Diffed,
    labels: Labels,
) -> Result<()> {
    let has = content.info(ctx, &diffed.digest).await?.labels.contains_key(UNCOMPRESSED_LABEL);
    if has || !labels.contains_key(UNCOMPRESSED_LABEL) {
        return Ok(());
    }
    let path = [format!("labels.{UNCOMPRESSED_LABEL}")];
    content.update(ctx, &diffed.digest, labels, &path).await.map(drop)
}

fn fresh_reference() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let nanos = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_nanos());
    format!("diff-{nanos}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Archives the changes, from the upper directory alone where that says everything.
fn archive(
    left: &[Mount],
    right: &[Mount],
    temp: &TempRoot,
    writer: &mut dyn Write,
    options: &DiffOptions,
) -> Result<Diffed> {
    if let Some(overlay) = Overlay::of(right)
        && view_lowers(left).is_some_and(|lowers| lowers == overlay.lowers)
    {
        let changes =
            Changes::OverlayUpper { upper: overlay.upper, userxattr: overlay.userxattr };
        return gantry_archive::diff(&changes, writer, options);
    }
    let lower = match left {
        [] => None,
        mounts => Some(temp.mount_readonly(mounts)?),
    };
    let upper = temp.mount_readonly(right)?;
    let changes = Changes::Trees {
        lower: lower.as_ref().map(|m| m.path().to_owned()),
        upper: upper.path().to_owned(),
    };
    let diffed = gantry_archive::diff(&changes, writer, options);
    let unmounted = upper.unmount().and(lower.map_or(Ok(()), |m| m.unmount()));
    let diffed = diffed?;
    unmounted?;
    Ok(diffed)
}

/// Hands bytes from a blocking thread to an async task.
struct ChunkWriter {
    chunks: mpsc::Sender<Bytes>,
}

impl Write for ChunkWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.chunks
            .blocking_send(Bytes::copy_from_slice(buf))
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the ingest has ended"))?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
