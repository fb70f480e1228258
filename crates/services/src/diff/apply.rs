//! Applying a layer.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gantry_archive::{Applied, ApplyOptions, Compression, Lowers, Target};
use gantry_core::{Context, Descriptor, media_types};
use gantry_errdefs::{Error, Result};
use gantry_metadata::Content;
use gantry_mount::{Mount, TempRoot};

use super::overlay::{Overlay, bind_source};
use super::joined;

/// Applies the layer `layer` onto `mounts` and tells what its plain tar is.
///
/// # Errors
/// NotFound for a blob the namespace has not; Unimplemented for what is no layer; else as
/// [`gantry_archive::apply`].
pub(super) async fn apply(
    content: &Content,
    ctx: &Context,
    layer: &Descriptor,
    mounts: Vec<Mount>,
    temp: &TempRoot,
    sync: bool,
) -> Result<Descriptor> {
    let reader = content.reader(ctx, &layer.digest).await?;
    if Compression::of_media_type(&layer.media_type).is_none() {
        return Err(Error::unimplemented(format!(
            "layer {}: no differ for media type {:?}",
            layer.digest, layer.media_type
        )));
    }
    let cancel = Cancel::default();
    let reader = Cancellable { inner: reader.into_blocking(), cancelled: Arc::clone(&cancel.0) };
    let temp = temp.clone();
    let applied = tokio::task::spawn_blocking(move || unpack(reader, &mounts, &temp, sync))
        .await
        .map_err(joined)?
        .map_err(|e| e.context(format!("layer {}", layer.digest)))?;
    drop(cancel);
    let size = i64::try_from(applied.size).unwrap_or(i64::MAX);
    Ok(Descriptor::new(media_types::OCI_LAYER, applied.diff_id, size))
}

/// Writes straight into the directory behind the mounts where that is known to give the same
/// result; mounts them otherwise.
fn unpack(reader: impl Read + Send, mounts: &[Mount], temp: &TempRoot, sync: bool) -> Result<Applied> {
    let mut options = ApplyOptions { sync, ..ApplyOptions::default() };
    if let Some(overlay) = Overlay::of(mounts) {
        options.target = Target::OverlayUpper { userxattr: overlay.userxattr };
        options.lowers = Lowers::Known(overlay.lowers);
        return gantry_archive::apply(reader, &overlay.upper, &options);
    }
    if let Some(source) = bind_source(mounts) {
        return gantry_archive::apply(reader, &source, &options);
    }
    let mounted = temp.mount(mounts)?;
    let applied = gantry_archive::apply(reader, mounted.path(), &options);
    let unmounted = mounted.unmount();
    let applied = applied?;
    unmounted?;
    Ok(applied)
}

/// Unpacks a tar blob that is no layer, such as a checkpoint, into an empty directory.
///
/// # Errors
/// As [`gantry_archive::apply`].
pub(crate) async fn extract(
    reader: Box<dyn gantry_content::Reader>,
    into: &Path,
) -> Result<Applied> {
    let into = into.to_owned();
    tokio::task::spawn_blocking(move || {
        gantry_archive::apply(reader.into_blocking(), &into, &ApplyOptions::default())
    })
    .await
    .map_err(joined)?
}

/// Ends the blocking work when the call that waits for it goes away.
#[derive(Debug, Default)]
struct Cancel(Arc<AtomicBool>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A reader that fails once its call was cancelled.
struct Cancellable<R> {
    inner: R,
    cancelled: Arc<AtomicBool>,
}

impl<R: Read> Read for Cancellable<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(io::Error::other("the call was cancelled"));
        }
        self.inner.read(buf)
    }
}
