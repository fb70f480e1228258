//! Import by this program: an OCI layout as a tar archive, compressed or not.
//!
//! A thread reads and parses; what it finds comes over a bounded channel. Blobs go into the
//! content store as they come, the index is read at the end.

use std::io::Read;

use bytes::Bytes;
use gantry_archive::tar::{Member, MemberKind, Members};
use gantry_archive::{Decompressor, Limits};
use gantry_core::image::{Document, Index, MANIFEST_SIZE_MAX};
use gantry_core::platforms::Matcher;
use gantry_core::{Descriptor, Digest, Labels};
use gantry_errdefs::{Error, Result, ResultExt};
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio_util::io::SyncIoBridge;

use super::{INDEX_DEPTH_MAX, is_document};
use crate::checkpoint_image::gc_labels;
use crate::client::Client;
use crate::content::{ContentWriter, WriterOptions};
use crate::image::Image;
use crate::images::ImageRecord;
use crate::transfer::{ImportOptions, dated_name};
use crate::unpack::UnpackOptions;

/// Pieces between the thread that reads and the task that writes.
const PIECE_COUNT_MAX: usize = 16;

/// Members of one archive.
const MEMBER_COUNT_MAX: usize = 100_000;

/// Annotations that name an image: in full, and by tag.
const NAME_ANNOTATION: &str = "io.containerd.image.name";
const REF_ANNOTATION: &str = "org.opencontainers.image.ref.name";

/// What comes over the channel.
enum Found {
    /// A file begins; its pieces follow.
    File { name: String, size: u64 },
    /// A piece of it.
    Piece(Bytes),
}

/// Imports the images of an archive; returns those that have names.
pub(crate) async fn import(
    client: &Client,
    archive: impl AsyncRead + Unpin + Send + 'static,
    options: &ImportOptions,
) -> Result<Vec<Image>> {
    let guard = client.leases().guard().await?;
    let imported = import_leased(guard.client(), archive, options).await;
    let released = guard.release().await;
    let records = imported?;
    released?;
    Ok(records.into_iter().map(|record| client.image_of(record)).collect())
}

async fn import_leased(
    client: &Client,
    archive: impl AsyncRead + Unpin + Send + 'static,
    options: &ImportOptions,
) -> Result<Vec<ImageRecord>> {
    let bytes = store_blobs(client, archive).await?;
    let index = Index::parse(&Digest::of(&bytes), &bytes)?;
    let mut records = Vec::new();
    for target in &index.manifests {
        label_tree(client, target).await?;
        for name in names(target, options) {
            let record = ImageRecord::new(
                name,
                Descriptor { annotations: Default::default(), ..target.clone() },
            );
            records.push(client.images().create_or_update(&record).await?);
        }
    }
    if let Some(snapshotter) = &options.unpack {
        for record in &records {
            let image =
                client.resolve_target(&record.name, &record.target, &Matcher::host()).await?;
            let unpack = UnpackOptions { snapshotter: snapshotter.clone() };
            client.unpack(&image, &unpack).await?;
        }
    }
    Ok(records)
}

/// The names an image gets: its own full one, else base name and tag.
fn names(target: &Descriptor, options: &ImportOptions) -> Vec<String> {
    let base = options.base_name.clone();
    let mut names = Vec::new();
    let own = |key| target.annotations.get(key).cloned();
    match (own(NAME_ANNOTATION), own(REF_ANNOTATION)) {
        (Some(full), _) if base.as_ref().is_none_or(|b| full.starts_with(b)) => names.push(full),
        (_, Some(tag)) if tag.contains(['/', ':']) => names.push(tag),
        (_, Some(tag)) => names.push(format!("{}:{tag}", base.clone().unwrap_or_else(dated_name))),
        _ => {}
    }
    if options.digests {
        names.push(format!("{}@{}", base.unwrap_or_else(dated_name), target.digest));
    }
    names
}

/// Stores every blob of the archive; returns its `index.json`.
async fn store_blobs(
    client: &Client,
    archive: impl AsyncRead + Unpin + Send + 'static,
) -> Result<Vec<u8>> {
    let (give, mut take) = mpsc::channel(PIECE_COUNT_MAX);
    let bridge = SyncIoBridge::new(archive);
    let reading = tokio::task::spawn_blocking(move || parse(bridge, &give));
    let mut index = None;
    let mut sink = Sink::Skip;
    while let Some(found) = take.recv().await {
        match found {
            Found::File { name, size } => {
                sink.finish(&mut index).await?;
                sink = Sink::open(client, &name, size).await?;
            }
            Found::Piece(piece) => sink.take(piece).await?,
        }
    }
    sink.finish(&mut index).await?;
    reading.await.map_err(|e| Error::internal(format!("reading an archive: {e}")))??;
    let missing = "archive: no OCI layout: it has no index.json";
    index.ok_or_else(|| Error::invalid_argument(missing))
}

fn parse(reader: impl Read, found: &mpsc::Sender<Found>) -> Result<()> {
    let send = |one| found.blocking_send(one).map_err(|_| Error::canceled("import"));
    let plain = Decompressor::detect(reader).context(|| "reading the archive")?;
    let mut members = Members::new(plain, Limits::default());
    let mut count = 0;
    while let Some(Member { name, kind, size }) = members.next()? {
        count += 1;
        if count > MEMBER_COUNT_MAX {
            let why = format!("archive: over {MEMBER_COUNT_MAX} members");
            return Err(Error::invalid_argument(why));
        }
        if !matches!(kind, MemberKind::File) {
            continue;
        }
        send(Found::File { name: name.trim_start_matches("./").to_owned(), size })?;
        members.content(|piece| send(Found::Piece(Bytes::copy_from_slice(piece))))?;
    }
    Ok(())
}

/// Where the pieces of the current member go.
enum Sink {
    Skip,
    Index(Vec<u8>),
    Blob(Box<ContentWriter>),
}

impl Sink {
    async fn open(client: &Client, name: &str, size: u64) -> Result<Self> {
        if name == "index.json" {
            if size > MANIFEST_SIZE_MAX {
                let why = format!("archive member {name}: {size} bytes are too many");
                return Err(Error::invalid_argument(why));
            }
            return Ok(Self::Index(Vec::new()));
        }
        let Some((algorithm, hex)) = name.strip_prefix("blobs/").and_then(|n| n.split_once('/'))
        else {
            return Ok(Self::Skip);
        };
        let digest: Digest = format!("{algorithm}:{hex}").parse()?;
        let options = WriterOptions {
            reference: format!("import-{digest}"),
            total: i64::try_from(size).unwrap_or(i64::MAX),
            expected: Some(digest),
        };
        match client.content().writer(options).await {
            Ok(mut writer) => {
                writer.restart().await?;
                Ok(Self::Blob(Box::new(writer)))
            }
            Err(e) if e.is_already_exists() => Ok(Self::Skip),
            Err(e) => Err(e),
        }
    }

    async fn take(&mut self, piece: Bytes) -> Result<()> {
        match self {
            Self::Skip => Ok(()),
            Self::Index(bytes) => {
                bytes.extend_from_slice(&piece);
                Ok(())
            }
            Self::Blob(writer) => writer.write(piece).await,
        }
    }

    async fn finish(self, index: &mut Option<Vec<u8>>) -> Result<()> {
        match self {
            Self::Skip => {}
            Self::Index(bytes) => *index = Some(bytes),
            Self::Blob(writer) => match writer.commit(&Labels::new()).await {
                Err(e) if !e.is_already_exists() => return Err(e),
                _ => {}
            },
        }
        Ok(())
    }
}

/// Checks that what the top leads to is there, and labels documents so that they keep it.
async fn label_tree(client: &Client, top: &Descriptor) -> Result<()> {
    let content = client.content();
    let mut todo = vec![(top.clone(), 0)];
    while let Some((next, depth)) = todo.pop() {
        if depth > INDEX_DEPTH_MAX {
            let why = format!("index {}: nested deeper than {INDEX_DEPTH_MAX}", next.digest);
            return Err(Error::invalid_argument(why));
        }
        if !is_document(&next) {
            continue;
        }
        let bytes = match content.read(&next.digest).await {
            // Platforms that the archive leaves out.
            Err(e) if e.is_not_found() && depth > 0 => continue,
            Err(e) if e.is_not_found() => {
                let why = format!("archive: it names {} but does not have it", next.digest);
                return Err(Error::invalid_argument(why));
            }
            other => other?,
        };
        let document = Document::parse(&next, &bytes)?;
        content.set_labels(&next.digest, &gc_labels(&document)).await?;
        todo.extend(document.children().into_iter().map(|(_, child)| (child.clone(), depth + 1)));
    }
    Ok(())
}
