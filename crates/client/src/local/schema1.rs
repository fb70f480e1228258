//! Images of schema 1, made into images of today's kind while they are pulled.

use std::collections::BTreeMap;
use std::io::Read;

use bytes::Bytes;
use gantry_archive::{Compression, Decompressor};
use gantry_core::image::{Document, Manifest, Schema1};
use gantry_core::{Algorithm, Descriptor, Digest, Digester, Labels, media_types};
use gantry_errdefs::{Error, Result, ResultExt};
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio_util::io::SyncIoBridge;

use super::gc_labels;
use super::pull::Pull;

/// Bytes between the download and the thread that inflates.
const INFLATE_AHEAD_BYTES: usize = 1 << 20;

/// What an image's layer is, packed and plain.
struct Layer {
    packed: Descriptor,
    diff_id: Digest,
}

impl Pull {
    /// Stores the image that the manifest `old` of schema 1 describes, and returns its target.
    ///
    /// # Errors
    /// InvalidArgument for what is no such manifest; those of the registry and the daemon.
    pub(super) async fn convert(&self, old: &[u8]) -> Result<Descriptor> {
        let old = Schema1::parse(old)?;
        let mut layers = BTreeMap::new();
        for blob in old.blobs() {
            layers.insert(blob.clone(), self.convert_layer(&blob).await?);
        }
        let (blobs, config) = old.convert(|blob| Some(layers.get(blob)?.diff_id.clone()))?;
        let config_bytes = Bytes::from(config);
        let config = described(media_types::OCI_CONFIG, &config_bytes);
        self.client.content().write_blob(&config, config_bytes, &Labels::new()).await?;
        let manifest = Manifest {
            schema_version: 2,
            media_type: media_types::OCI_MANIFEST.to_owned(),
            artifact_type: None,
            config,
            layers: blobs.iter().map(|blob| layers[blob].packed.clone()).collect(),
            subject: None,
            annotations: BTreeMap::new(),
        };
        let bytes = serde_json::to_vec(&manifest)
            .map_err(|e| Error::internal(format!("encoding a manifest: {e}")))?;
        let bytes = Bytes::from(bytes);
        let target = described(media_types::OCI_MANIFEST, &bytes);
        let labels = gc_labels(&Document::Manifest(Box::new(manifest)));
        self.client.content().write_blob(&target, bytes, &labels).await?;
        Ok(target)
    }

    /// Fetches a layer, and looks at what it holds: only then its diff ID is known.
    async fn convert_layer(&self, digest: &Digest) -> Result<Layer> {
        let size = self.repository.blob_size(digest).await?;
        let mut packed = Descriptor::new(media_types::OCI_LAYER_GZIP, digest.clone(), size);
        self.fetch_blob(&packed).await?;
        let (theirs, ours) = tokio::io::duplex(INFLATE_AHEAD_BYTES);
        let inflating = tokio::task::spawn_blocking(move || inflated(ours));
        let content = self.client.content();
        let (mut feed, mut head) = (theirs, Vec::new());
        let mut reader = content.reader(digest, 0).await?;
        while let Some(piece) = reader.next().await? {
            let wanted = Compression::MAGIC_LEN.saturating_sub(head.len());
            head.extend_from_slice(&piece[..wanted.min(piece.len())]);
            // When the other side gives up, it says why.
            if feed.write_all(&piece).await.is_err() {
                break;
            }
        }
        drop(feed);
        let diff_id = inflating
            .await
            .map_err(|e| Error::internal(format!("inflating {digest}: {e}")))?
            .map_err(|e| e.context(format!("layer {digest}")))?;
        let media_type = match Compression::of_magic(&head) {
            Compression::None => media_types::OCI_LAYER,
            Compression::Gzip => media_types::OCI_LAYER_GZIP,
            Compression::Zstd => media_types::OCI_LAYER_ZSTD,
        };
        media_type.clone_into(&mut packed.media_type);
        Ok(Layer { packed, diff_id })
    }
}

/// The digest of the plain bytes.
fn inflated(packed: impl AsyncRead + Unpin) -> Result<Digest> {
    let context = || "inflating";
    let mut plain = Decompressor::detect(SyncIoBridge::new(packed)).context(context)?;
    let mut digester = Digester::new(Algorithm::Sha256);
    let mut buffer = vec![0; 64 << 10];
    loop {
        match plain.read(&mut buffer).context(context)? {
            0 => return Ok(digester.finish()),
            len => digester.update(&buffer[..len]),
        }
    }
}

fn described(media_type: &str, bytes: &Bytes) -> Descriptor {
    let size = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
    Descriptor::new(media_type, Digest::of(bytes), size)
}
