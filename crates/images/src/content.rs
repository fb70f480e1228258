//! Content as transfers handle it: names of ingests, documents, labels.

use std::time::Duration;

use bytes::Bytes;
use gantry_content::WriterOptions;
use gantry_core::image::{Document, MANIFEST_SIZE_MAX};
pub(crate) use gantry_core::labels::{add_source, source_label, source_repositories};
use gantry_core::{Context, Descriptor, Digest, Digester, Labels, Reference, media_types};
use gantry_errdefs::{Error, Result, ResultExt};
use gantry_metadata::{Content, ContentWriter, Db};

/// First pause while another writer holds a reference; it doubles up to [`LOCK_PAUSE_MAX`].
const LOCK_PAUSE_FIRST: Duration = Duration::from_millis(10);

/// Longest pause between looks at a held reference. There is no deadline: the other writer is a
/// transfer of its own with deadlines, and when it ends the reference is free.
const LOCK_PAUSE_MAX: Duration = Duration::from_millis(500);

/// Blobs below this size are fetched again in a moment.
const SMALL_BYTES: u64 = 1 << 20;

/// Prefix of the labels by which a parent keeps its children.
const LABEL_GC_REF: &str = "containerd.io/gc.ref.content.";

/// The reference that clients, and so we, ingest a blob under.
pub(crate) fn ref_key(descriptor: &Descriptor) -> String {
    let media_type = descriptor.media_type.as_str();
    let kind = if media_types::is_manifest(media_type) {
        "manifest"
    } else if media_types::is_index(media_type) {
        "index"
    } else if media_types::is_layer(media_type) {
        "layer"
    } else if media_types::is_config(media_type) {
        "config"
    } else if media_type == "application/vnd.in-toto+json" {
        "attestation"
    } else {
        "unknown"
    };
    format!("{kind}-{}", descriptor.digest)
}

/// Commits a blob of `size` bytes that a transfer stores. A small one is durable with the write
/// that ends the transfer (or [`Db::sync`]), whatever made it took a moment; of a large one a power
/// cut shall not take more than what is under way.
pub(crate) async fn commit(
    writer: ContentWriter,
    size: u64,
    digest: &Digest,
    labels: Labels,
) -> Result<Digest> {
    let committed = writer.commit(size, Some(digest), labels);
    if size < SMALL_BYTES { Db::relaxed(committed).await } else { committed.await }
}

/// The labels by which `document` keeps its children.
pub(crate) fn gc_labels(document: &Document) -> Labels {
    let child = |(suffix, d): (String, &Descriptor)| {
        (format!("{LABEL_GC_REF}{suffix}"), d.digest.to_string())
    };
    document.children().into_iter().map(child).collect()
}

/// How opening an ingest ended.
pub(crate) enum Opened {
    /// The blob is there (and under the lease).
    Exists,
    /// It must be written.
    Writer(Box<ContentWriter>),
}

/// Opens the ingest of a blob; waits while someone else is writing it.
pub(crate) async fn open(
    content: &Content,
    ctx: &Context,
    descriptor: &Descriptor,
) -> Result<Opened> {
    let options = WriterOptions {
        reference: ref_key(descriptor),
        total: u64::try_from(descriptor.size).unwrap_or(0),
        expected: Some(descriptor.digest.clone()),
    };
    let mut pause = LOCK_PAUSE_FIRST;
    loop {
        match content.writer(ctx, options.clone()).await {
            Ok(writer) => return Ok(Opened::Writer(Box::new(writer))),
            Err(e) if e.is_already_exists() => return Ok(Opened::Exists),
            Err(e) if e.is_unavailable() => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LOCK_PAUSE_MAX);
            }
            Err(e) => return Err(e),
        }
    }
}

/// Reads a document out of the content store and checks its digest.
///
/// # Errors
/// NotFound; ResourceExhausted when it is larger than any document may be; DataLoss when the
/// bytes are not those the digest names.
pub(crate) async fn read_document(
    content: &Content,
    ctx: &Context,
    descriptor: &Descriptor,
) -> Result<Bytes> {
    let digest = &descriptor.digest;
    let reader = content.reader(ctx, digest).await?;
    let size = reader.size();
    if size > MANIFEST_SIZE_MAX {
        return Err(Error::resource_exhausted(format!(
            "document {digest}: {size} bytes, more than {MANIFEST_SIZE_MAX}"
        )));
    }
    let mut out = Vec::new();
    while (out.len() as u64) < size {
        let at = out.len() as u64;
        let piece = reader.read_at(at, usize::try_from(size - at).unwrap_or(0)).await;
        let piece = piece.context(|| format!("document {digest}"))?;
        if piece.is_empty() {
            break;
        }
        out.extend_from_slice(&piece);
    }
    let mut digester = Digester::new(digest.algorithm());
    digester.update(&out);
    let found = digester.finish();
    if found != *digest {
        let text = format!("document {digest}: the stored bytes have the digest {found}");
        return Err(Error::data_loss(text));
    }
    Ok(out.into())
}

/// Gives a blob that exists already the labels it lacks.
pub(crate) async fn add_labels(
    content: &Content,
    ctx: &Context,
    descriptor: &Descriptor,
    mut wanted: Labels,
    origin: Option<&Reference>,
) -> Result<()> {
    let info = content.info(ctx, &descriptor.digest).await?;
    if let Some(origin) = origin {
        add_source(&mut wanted, &info.labels, origin);
    }
    wanted.retain(|key, value| info.labels.get(key) != Some(value));
    if wanted.is_empty() {
        return Ok(());
    }
    let paths: Vec<String> = wanted.keys().map(|key| format!("labels.{key}")).collect();
    content.update(ctx, &descriptor.digest, wanted, &paths).await.map(drop)
}
