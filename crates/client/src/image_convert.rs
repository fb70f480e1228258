//! Images in another form: OCI's media types, other compression, fewer platforms.

mod erofs;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::{Mutex, PoisonError};

use bytes::{Buf, Bytes};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use gantry_archive::{Compression, Compressor, Decompressor};
use gantry_core::image::{Document, INDEX_DEPTH_MAX};
use gantry_core::platforms::Matcher;
use gantry_core::{Algorithm, Descriptor, Digest, Digester, Labels, Platform, media_types};
use gantry_errdefs::{Error, Result, ResultExt};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::client::Client;
use crate::content::{Content, WriterOptions};
use crate::image::Image;
use crate::images::ImageRecord;
use crate::local::gc_labels;

/// Layers that are written anew at the same time: each keeps a core busy.
const LAYERS_AT_ONCE: usize = 2;

/// Bytes that go from task to thread and back at once, and how many such pieces may wait.
const PIECE_BYTES: usize = 256 << 10;
const PIECE_COUNT_MAX: usize = 8;

/// Label on a compressed layer: the digest of the tar within.
const UNCOMPRESSED_LABEL: &str = "containerd.io/uncompressed";

/// Annotation by which an attestation names the manifest it is about.
const SUBJECT_ANNOTATION: &str = "vnd.docker.reference.digest";

/// What is changed of an image.
#[derive(Clone, Debug, Default)]
pub struct ConvertOptions {
    /// How layers are compressed; None leaves them as they are.
    pub compression: Option<Compression>,
    /// Makes layers into erofs images, by `mkfs.erofs` and as root of this machine. They have other
    /// diff IDs then, and the image another config; it runs on the erofs snapshotter alone.
    pub erofs: bool,
    /// Uses OCI's media types instead of Docker's.
    pub oci: bool,
    /// Platforms to keep; empty for this machine's, see `all_platforms`.
    pub platforms: Vec<Platform>,
    /// Keeps every platform; content of all of them must be there.
    pub all_platforms: bool,
}

impl Client {
    /// Makes the image `target` of the image `source`. The layers are the same trees: diff IDs and
    /// configs stay, but for erofs. What is there already in the form wanted is not written again; a target of
    /// that name is replaced.
    ///
    /// # Errors
    /// NotFound for the image, its content, or when no platform of it is wanted; InvalidArgument
    /// for damaged documents or layers.
    pub async fn convert_image(
        &self,
        source: &str,
        target: &str,
        options: &ConvertOptions,
    ) -> Result<Image> {
        let record = self.images().get(source).await?;
        let guard = self.leases().guard().await?;
        let held = guard.client();
        let platforms = match (options.all_platforms, options.platforms.is_empty()) {
            (true, _) => Matcher::all(),
            (false, true) => Matcher::host(),
            (false, false) => Matcher::ordered(&options.platforms),
        };
        let convert =
            Conversion { content: held.content(), options, platforms, renamed: Mutex::default() };
        let work = async {
            let made = convert.document(&record.target, 0).await?;
            let new = ImageRecord { labels: record.labels, ..ImageRecord::new(target, made) };
            held.images().create_or_update(&new).await
        };
        let made = work.await.context(|| format!("image {source:?}"));
        let released = guard.release().await;
        let made = made?;
        released?;
        Ok(self.image_of(made))
    }
}

/// What a layer is written as.
enum Form {
    /// The same tar in another compression.
    Packed(Compression),
    /// The image of a layer, with those below it and how many they are.
    Erofs(erofs::Stack, usize),
}

impl Form {
    fn name(&self) -> &'static str {
        match self {
            Self::Packed(compression) => compression.as_str(),
            Self::Erofs(..) => "erofs",
        }
    }
}

/// One conversion under way.
struct Conversion<'a> {
    content: Content,
    options: &'a ConvertOptions,
    platforms: Matcher,
    /// Manifests by their old digest, for what names them by it.
    renamed: Mutex<BTreeMap<String, Digest>>,
}

impl Conversion<'_> {
    /// The descriptor of what a manifest or index became.
    fn document<'s>(
        &'s self,
        target: &'s Descriptor,
        depth: usize,
    ) -> BoxFuture<'s, Result<Descriptor>> {
        async move {
            if depth > INDEX_DEPTH_MAX {
                let why =
                    format!("index {}: nested more than {INDEX_DEPTH_MAX} deep", target.digest);
                return Err(Error::invalid_argument(why));
            }
            let bytes = self.content.read(&target.digest).await?;
            let mut value: Value = serde_json::from_slice(&bytes)
                .map_err(|e| Error::invalid_argument(format!("document {}: {e}", target.digest)))?;
            let media_type = self.media_type(&target.media_type);
            match Document::parse(target, &bytes)? {
                Document::Index(index) => self.entries(&index.manifests, &mut value, depth).await?,
                Document::Manifest(manifest) => {
                    let mut config = manifest.config.clone();
                    config.media_type = self.media_type(&config.media_type);
                    point_at(&mut value["config"], &config);
                    // What an artifact carries stays what it is.
                    let is_image = media_types::is_config(&manifest.config.media_type);
                    let to_erofs = self.options.erofs && is_image;
                    let layers = match to_erofs {
                        true => self.erofs_layers(&manifest.layers).await?,
                        false => self.layers(&manifest.layers).await?,
                    };
                    for (at, layer) in layers.iter().enumerate() {
                        point_at(&mut value["layers"][at], layer);
                    }
                    if to_erofs {
                        let config = self.config(&config, &layers).await?;
                        point_at(&mut value["config"], &config);
                    }
                }
            }
            if value.get("mediaType").is_some() || self.options.oci {
                value["mediaType"] = json!(media_type);
            }
            let made = self.store(target, media_type, &value, &bytes).await?;
            let old = target.digest.to_string();
            self.lock().insert(old, made.digest.clone());
            Ok(made)
        }
        .boxed()
    }

    /// Converts the entries of an index that are wanted, and drops the others.
    async fn entries(&self, entries: &[Descriptor], value: &mut Value, depth: usize) -> Result<()> {
        let old = value["manifests"].as_array().cloned().unwrap_or_default();
        let mut kept = Vec::new();
        for (entry, mut value) in entries.iter().zip(old) {
            if !entry.platform.as_ref().is_none_or(|p| self.platforms.matches(p)) {
                continue;
            }
            point_at(&mut value, &self.document(entry, depth + 1).await?);
            if self.options.erofs && value["platform"].is_object() {
                erofs::tell_platform(&mut value["platform"]);
            }
            kept.push(value);
        }
        if kept.is_empty() {
            return Err(Error::not_found(format!("a manifest for {}", self.platforms)));
        }
        // Attestations go by the digest of what they are about.
        for value in &mut kept {
            let subject = value["annotations"][SUBJECT_ANNOTATION].as_str();
            let renamed = subject.and_then(|old| self.lock().get(old).cloned());
            if let Some(renamed) = renamed {
                value["annotations"][SUBJECT_ANNOTATION] = json!(renamed.as_str());
            }
        }
        value["manifests"] = Value::Array(kept);
        Ok(())
    }

    /// The layers of an image as erofs images, in their order.
    async fn erofs_layers(&self, layers: &[Descriptor]) -> Result<Vec<Descriptor>> {
        let stack = erofs::Stack::new().context(|| "a directory for layers")?;
        let mut made = Vec::new();
        for (number, layer) in layers.iter().enumerate() {
            if Compression::of_media_type(&layer.media_type).is_none() {
                return Err(Error::invalid_argument(format!(
                    "layer {}: {:?} cannot be made into an erofs image",
                    layer.digest, layer.media_type
                )));
            }
            let form = Form::Erofs(stack.clone(), number);
            let (digest, size) = self.rewrite(layer, form).await?;
            made.push(Descriptor::new(erofs::LAYER, digest, size));
        }
        Ok(made)
    }

    /// The config of an image whose layers became others.
    async fn config(&self, config: &Descriptor, layers: &[Descriptor]) -> Result<Descriptor> {
        let bytes = self.content.read(&config.digest).await?;
        let mut value: Value = serde_json::from_slice(&bytes)
            .map_err(|e| Error::invalid_argument(format!("config {}: {e}", config.digest)))?;
        let layers: Vec<String> = layers.iter().map(|layer| layer.digest.to_string()).collect();
        erofs::tell_config(&mut value, &layers);
        let bytes = serde_json::to_vec(&value)
            .map_err(|e| Error::internal(format!("encoding a config: {e}")))?;
        let size = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        let made = Descriptor::new(config.media_type.clone(), Digest::of(&bytes), size);
        self.content.write_blob(&made, bytes.into(), &Labels::new()).await?;
        Ok(made)
    }

    /// The layers in the compression wanted.
    async fn layers(&self, layers: &[Descriptor]) -> Result<Vec<Descriptor>> {
        let each = layers.iter().cloned().map(|layer| async move { self.layer(layer).await });
        futures_util::stream::iter(each).buffered(LAYERS_AT_ONCE).try_collect().await
    }

    /// What a layer becomes.
    async fn layer(&self, layer: Descriptor) -> Result<Descriptor> {
        let Some(is) = Compression::of_media_type(&layer.media_type) else {
            // Not a layer but what an artifact carries.
            return Ok(layer);
        };
        let wanted = self.options.compression.unwrap_or(is);
        let media_type = wanted.layer_type_like(&layer.media_type, self.options.oci);
        if wanted == is {
            return Ok(Descriptor { media_type, ..layer });
        }
        let (digest, size) = self.rewrite(&layer, Form::Packed(wanted)).await?;
        // Annotations may describe the bytes there were, as those of lazy formats do.
        Ok(Descriptor::new(media_type, digest, size))
    }

    /// Writes a layer in another form.
    async fn rewrite(&self, layer: &Descriptor, wanted: Form) -> Result<(Digest, i64)> {
        let what = || format!("layer {}", layer.digest);
        let options = WriterOptions {
            reference: format!("convert-{}-{}", wanted.name(), layer.digest),
            ..WriterOptions::default()
        };
        let mut writer = self.content.writer(options).await?;
        writer.restart().await?;
        let (give, take) = mpsc::channel::<Bytes>(PIECE_COUNT_MAX);
        let (made, mut arriving) = mpsc::channel::<Bytes>(PIECE_COUNT_MAX);
        let is_plain = matches!(wanted, Form::Packed(Compression::None));
        let work = tokio::task::spawn_blocking(move || {
            let (layer, out) = (Arriving { pieces: take, piece: Bytes::new() }, Leaving::new(made));
            match wanted {
                Form::Packed(compression) => recompress(layer, out, compression),
                Form::Erofs(stack, number) => stack.make(number, layer, out),
            }
        });
        let reading = async {
            let mut reader = self.content.reader(&layer.digest, 0).await?;
            while let Some(piece) = reader.next().await? {
                if give.send(piece).await.is_err() {
                    // The thread has ended; it tells why.
                    break;
                }
            }
            drop(give);
            Ok::<_, Error>(())
        };
        let writing = async {
            while let Some(piece) = arriving.recv().await {
                writer.write(piece).await?;
            }
            Ok::<_, Error>(())
        };
        let (read, written) = tokio::join!(reading, writing);
        drop(arriving);
        let done = work.await.map_err(|e| Error::internal(format!("converting a layer: {e}")))?;
        written?;
        // A layer that could not be read to its end may look like a whole one.
        read.context(what)?;
        let done = done.map_err(|e| Error::invalid_argument(format!("{}: {e}", what())))?;
        let labels = match is_plain {
            true => Labels::new(),
            false => Labels::from([(UNCOMPRESSED_LABEL.to_owned(), done.diff_id.to_string())]),
        };
        match writer.commit(&labels).await {
            Err(e) if e.is_already_exists() => {}
            committed => drop(committed.context(what)?),
        }
        Ok((done.digest, i64::try_from(done.size).unwrap_or(i64::MAX)))
    }

    /// Stores a document, unless it is what it was.
    async fn store(
        &self,
        old: &Descriptor,
        media_type: String,
        value: &Value,
        old_bytes: &[u8],
    ) -> Result<Descriptor> {
        let parsed: Option<Value> = serde_json::from_slice(old_bytes).ok();
        if parsed.as_ref() == Some(value) && media_type == old.media_type {
            return Ok(Descriptor { platform: None, ..old.clone() });
        }
        let bytes = serde_json::to_vec(value)
            .map_err(|e| Error::internal(format!("encoding a manifest: {e}")))?;
        let size = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        let made = Descriptor::new(media_type, Digest::of(&bytes), size);
        let labels = gc_labels(&Document::parse(&made, &bytes)?);
        self.content.write_blob(&made, bytes.into(), &labels).await?;
        Ok(made)
    }

    fn media_type(&self, old: &str) -> String {
        let oci = match old {
            media_types::DOCKER_LIST => media_types::OCI_INDEX,
            media_types::DOCKER_MANIFEST => media_types::OCI_MANIFEST,
            media_types::DOCKER_CONFIG => media_types::OCI_CONFIG,
            other => other,
        };
        if self.options.oci { oci.to_owned() } else { old.to_owned() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Digest>> {
        self.renamed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has an entry of a document describe something else; what it says besides stays.
fn point_at(value: &mut Value, at: &Descriptor) {
    value["mediaType"] = json!(at.media_type);
    value["size"] = json!(at.size);
    if value["digest"] != json!(at.digest.as_str()) {
        value["digest"] = json!(at.digest.as_str());
        // Copies of the bytes, or other places where they were.
        if let Some(entry) = value.as_object_mut() {
            entry.remove("data");
            entry.remove("urls");
        }
    }
}

/// A layer that was written.
struct Made {
    digest: Digest,
    size: u64,
    diff_id: Digest,
}

/// Reads a layer in whatever compression and writes it in another.
fn recompress(layer: impl Read, out: Leaving, compression: Compression) -> std::io::Result<Made> {
    let mut plain = Decompressor::detect(layer)?;
    let mut packed = Compressor::new(out, compression)?;
    let mut diff_id = Digester::new(Algorithm::Sha256);
    let mut buf = vec![0; PIECE_BYTES];
    loop {
        let len = plain.read(&mut buf)?;
        if len == 0 {
            break;
        }
        diff_id.update(&buf[..len]);
        packed.write_all(&buf[..len])?;
    }
    let mut out = packed.finish()?;
    out.flush()?;
    Ok(Made { digest: out.digester.finish(), size: out.size, diff_id: diff_id.finish() })
}

/// Pieces that come from a task.
struct Arriving {
    pieces: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Arriving {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let len = buf.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buf[..len]);
        Ok(len)
    }
}

/// Pieces that go to a task.
struct Leaving {
    pieces: mpsc::Sender<Bytes>,
    buf: Vec<u8>,
    digester: Digester,
    size: u64,
}

impl Leaving {
    fn new(pieces: mpsc::Sender<Bytes>) -> Self {
        let digester = Digester::new(Algorithm::Sha256);
        Self { pieces, buf: Vec::with_capacity(PIECE_BYTES), digester, size: 0 }
    }
}

impl Write for Leaving {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let len = data.len().min(PIECE_BYTES - self.buf.len());
        self.buf.extend_from_slice(&data[..len]);
        if self.buf.len() == PIECE_BYTES {
            self.flush()?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.buf.is_empty() {
            return Ok(());
        }
        self.digester.update(&self.buf);
        self.size += self.buf.len() as u64;
        let piece = std::mem::replace(&mut self.buf, Vec::with_capacity(PIECE_BYTES));
        let sent = self.pieces.blocking_send(piece.into());
        sent.map_err(|_| std::io::ErrorKind::BrokenPipe.into())
    }
}
