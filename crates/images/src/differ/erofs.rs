//! Layers that come as erofs images, for snapshotters that keep them so.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use gantry_archive::Decompressor;
use gantry_core::{Algorithm, Context, Descriptor, Digest, Digester};
use gantry_errdefs::{Error, Result, ResultExt};
use gantry_mount::Mount;
use gantry_snapshots::{LayerOrigin, erofs_layer};

use super::place::{Place, place};
use super::{ApplyRequest, DiffRequest, Differ, LayerDiffer, Origin, Stop, Stoppable, joined};

/// Bytes copied at once.
const PIECE_BYTES: usize = 256 << 10;

/// Where an erofs image has its mark, and the mark.
const MAGIC_AT: u64 = 1024;
const MAGIC: [u8; 4] = 0xE0F5_E1E2_u32.to_le_bytes();

/// Puts layers that are erofs images into snapshots of the erofs snapshotter as they are, and
/// applies all others as [`Differ`] does. It is asked for by name (`erofs`), since mounting an image
/// has the kernel read what its maker wrote.
#[derive(Clone, Debug)]
pub struct ErofsDiffer(Differ);

impl ErofsDiffer {
    /// One that leaves what is no image to `others`.
    pub fn new(others: Differ) -> Self {
        Self(others)
    }
}

#[async_trait]
impl LayerDiffer for ErofsDiffer {
    async fn apply(
        &self,
        ctx: &Context,
        layer: &Descriptor,
        mounts: &[Mount],
        request: ApplyRequest,
    ) -> Result<Descriptor> {
        let Some(media_type) = image_type(&layer.media_type)? else {
            return self.0.apply(ctx, layer, mounts, request).await;
        };
        let dir = layer_dir(mounts).ok_or_else(|| {
            Error::unimplemented(format!(
                "layer {}: an erofs image can be put into a snapshot of the erofs snapshotter only",
                layer.digest
            ))
        })?;
        let reader = self.0.db.content().reader(ctx, &layer.digest).await?.into_blocking();
        let slot = self.0.slot(Origin::Store).await?;
        let stop = Stop::default();
        let _stopped = stop.clone().on_drop();
        let what = layer.digest.clone();
        let work = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            put(Stoppable { inner: reader, stop }, &dir).context(|| format!("layer {what}"))
        });
        let (diff_id, size) = joined(work.await)?;
        let blob = Some(layer.digest.clone());
        self.0.db.note_applied(mounts, LayerOrigin { diff_id: diff_id.clone(), blob });
        Ok(Descriptor::new(media_type, diff_id, i64::try_from(size).unwrap_or(i64::MAX)))
    }

    async fn diff(
        &self,
        ctx: &Context,
        left: &[Mount],
        right: &[Mount],
        request: DiffRequest,
    ) -> Result<Descriptor> {
        self.0.diff(ctx, left, right, request).await
    }
}

/// The type of the image itself, when the layer is one: `application/vnd.erofs.layer...` or an
/// older one that ends with `.erofs`, as it is or packed with zstd.
///
/// # Errors
/// Unimplemented for one that is packed otherwise.
fn image_type(media_type: &str) -> Result<Option<String>> {
    let (base, packed) = match media_type.split_once('+') {
        Some((base, packed)) => (base, Some(packed)),
        None => (media_type, None),
    };
    if !base.starts_with("application/vnd.erofs.layer") && !base.ends_with(".erofs") {
        return Ok(None);
    }
    match packed {
        None | Some("zstd") => Ok(Some(base.to_owned())),
        Some(_) => Err(Error::unimplemented(format!("unsupported diff media type {media_type:?}"))),
    }
}

/// The directory of the snapshot that `mounts` write to, if it takes an image.
fn layer_dir(mounts: &[Mount]) -> Option<PathBuf> {
    let upper = match place(mounts) {
        Place::Dir(dir) => dir,
        Place::Overlay { upper: Some(upper), .. } => upper,
        _ => return None,
    };
    let dir = upper.parent()?;
    dir.join(erofs_layer::WANTED).exists().then(|| dir.to_owned())
}

/// Writes an image into the directory of its snapshot; returns its digest and size.
fn put(mut layer: impl Read, dir: &Path) -> Result<(Digest, u64)> {
    let (new, image) = (dir.join("layer.erofs.new"), dir.join(erofs_layer::IMAGE));
    let what = || new.display().to_string();
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&new)
        .context(what)?;
    let written = copy(&mut layer, &mut file).context(what)?;
    let mut mark = [0; MAGIC.len()];
    let is_image = file.read_exact_at(&mut mark, MAGIC_AT).is_ok() && mark == MAGIC;
    if !is_image {
        let _ = fs::remove_file(&new);
        return Err(Error::invalid_argument("it is no erofs image"));
    }
    fs::rename(&new, &image).context(what)?;
    Ok(written)
}

/// Copies what is within the compression, and says what it was.
fn copy(layer: &mut impl Read, to: &mut File) -> io::Result<(Digest, u64)> {
    let mut plain = Decompressor::detect(layer)?;
    let mut digester = Digester::new(Algorithm::Sha256);
    let (mut size, mut buf) = (0, vec![0; PIECE_BYTES]);
    loop {
        let len = plain.read(&mut buf)?;
        if len == 0 {
            return Ok((digester.finish(), size));
        }
        digester.update(&buf[..len]);
        to.write_all(&buf[..len])?;
        size += len as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_known_by_their_type() {
        let base = |text: &str| image_type(text).map_err(|e| e.is_unimplemented());
        let v1 = || Ok(Some("application/vnd.erofs.layer.v1".to_owned()));
        assert_eq!(base("application/vnd.erofs.layer.v1"), v1());
        assert_eq!(base("application/vnd.erofs.layer.v1+zstd"), v1());
        assert_eq!(base("application/vnd.erofs.layer.v1+gzip"), Err(true));
        let old = "application/vnd.oci.image.layer.v1.erofs";
        assert_eq!(base(old), Ok(Some(old.to_owned())));
        assert_eq!(base("application/vnd.oci.image.layer.v1.tar+gzip"), Ok(None));
    }
}
