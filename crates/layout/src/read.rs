//! Reading an archive.
//!
//! A thread reads and parses; what it finds comes over a bounded channel to the task that stores
//! blobs. When that task ends early, the thread fails at its next send.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Read;

use bytes::Bytes;
use gantry_archive::tar::{self, Found, Links};
use gantry_archive::{Compression, Decompressor};
use gantry_core::image::{ArchivedImage, MANIFEST_SIZE_MAX, blob_digest};
use gantry_core::{Descriptor, Digest};
use gantry_errdefs::{Error, Result, ResultExt};
use serde::Deserialize;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio_util::io::SyncIoBridge;

use crate::DockerImage;

/// Pieces between the thread that reads and the task that stores.
const PIECE_COUNT_MAX: usize = 16;

/// The only layout version there is (OCI image spec, image-layout.md).
const LAYOUT_VERSION: &str = "1.0.0";

/// Where the blobs of an archive go.
pub trait Blobs: Send + Sync {
    /// A blob on its way. One that is dropped came to nothing.
    type Writer: Send;

    /// Begins the blob that is the member `name`, of `size` bytes; `digest` is what the name promises.
    ///
    /// # Errors
    /// AlreadyExists when the blob of that digest is there; else what keeps it from being stored.
    fn begin(
        &self,
        name: &str,
        digest: Option<&Digest>,
        size: u64,
    ) -> impl Future<Output = Result<Self::Writer>> + Send;

    /// Takes the next bytes.
    ///
    /// # Errors
    /// What keeps them from being stored.
    fn write(
        &self,
        writer: &mut Self::Writer,
        piece: Bytes,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Stores the blob, of which all bytes have come, and tells its digest. One that is there already is
    /// as good.
    ///
    /// # Errors
    /// InvalidArgument or FailedPrecondition when the bytes are not what its name promised; what keeps
    /// it from being stored.
    fn end(&self, writer: Self::Writer) -> impl Future<Output = Result<Digest>> + Send;

    /// Size and first `len` bytes of a blob that is there; fewer if it is shorter.
    ///
    /// # Errors
    /// NotFound; what keeps it from being read.
    fn head(
        &self,
        digest: &Digest,
        len: usize,
    ) -> impl Future<Output = Result<(u64, Bytes)>> + Send;
}

/// A blob of an archive that is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// How it is compressed, by its first bytes.
    pub compression: Compression,
}

impl Stored {
    /// The blob as one of this media type.
    pub fn described(&self, media_type: &str) -> Descriptor {
        let size = i64::try_from(self.size).unwrap_or(i64::MAX);
        Descriptor::new(media_type, self.digest.clone(), size)
    }
}

/// What an archive held.
#[derive(Debug, Default)]
pub struct Archived {
    layout: Option<Vec<u8>>,
    index: Option<Vec<u8>>,
    manifest: Option<Vec<u8>>,
    blobs: BTreeMap<String, Stored>,
    links: Links,
}

/// What kind of archive it is.
#[derive(Debug)]
pub enum Contents<'a> {
    /// An OCI image layout: its `index.json`.
    Layout(&'a [u8]),
    /// What docker saves: the images of its `manifest.json`.
    Docker(Vec<DockerImage>),
}

#[derive(Deserialize)]
struct Layout {
    #[serde(rename = "imageLayoutVersion", default)]
    version: String,
}

impl Archived {
    /// What the archive is. Docker's newer ones are both; a layout says more.
    ///
    /// # Errors
    /// InvalidArgument when it is neither, or does not hold together.
    pub fn contents(&self) -> Result<Contents<'_>> {
        if let Some(layout) = &self.layout {
            let layout: Layout = serde_json::from_slice(layout)
                .map_err(|e| Error::invalid_argument(format!("archive member oci-layout: {e}")))?;
            if layout.version != LAYOUT_VERSION {
                return Err(Error::invalid_argument(format!(
                    "archive member oci-layout: version {:?} is not {LAYOUT_VERSION}",
                    layout.version
                )));
            }
            let index = self.index.as_ref().ok_or_else(|| {
                Error::invalid_argument("the archive is an OCI layout without index.json")
            })?;
            return Ok(Contents::Layout(index));
        }
        let manifest = self.manifest.as_ref().ok_or_else(|| {
            let why = "the archive is no image: it has neither oci-layout nor manifest.json";
            Error::invalid_argument(why)
        })?;
        let images = ArchivedImage::parse_all(manifest)?.into_iter();
        Ok(Contents::Docker(images.map(|i| DockerImage::new(self, i)).collect::<Result<_>>()?))
    }

    /// The blob that a member's name stands for, links followed.
    pub(crate) fn blob(&self, name: &str) -> Option<&Stored> {
        self.blobs.get(&self.links.follow(name)?)
    }
}

/// Reads an archive to its end.
///
/// # Errors
/// InvalidArgument for what is no tar, or a damaged one, or a member that cannot be one of an image
/// archive; those of `blobs` and the stream.
pub async fn read<B: Blobs>(
    blobs: &B,
    archive: impl AsyncRead + Send + Unpin + 'static,
) -> Result<Archived> {
    let (events, mut arriving) = mpsc::channel(PIECE_COUNT_MAX);
    let bridge = SyncIoBridge::new(archive);
    let parsing = tokio::task::spawn_blocking(move || parse(bridge, &events));
    let mut archived = Archived::default();
    let mut current = Current::Skipped;
    while let Some(event) = arriving.recv().await {
        match event {
            Event::File { name, size } => {
                current.end(blobs, &mut archived).await?;
                current = Current::begin(blobs, name, size, &mut archived).await?;
            }
            Event::Piece(piece) => current.take(blobs, piece).await?,
            Event::Link { name, to } => archived.links.insert(&name, &to),
        }
    }
    // An archive that ends within a member says so, and not that the bytes are not the member's.
    parsing.await.unwrap_or_else(|err| match err.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Err(Error::unavailable("the archive: the runtime is shutting down")),
    })?;
    current.end(blobs, &mut archived).await?;
    Ok(archived)
}

/// What comes over the channel.
enum Event {
    /// A file begins; pieces follow until the next event of another kind.
    File { name: String, size: u64 },
    /// A piece of it.
    Piece(Bytes),
    /// One member is another.
    Link { name: String, to: String },
}

fn parse(reader: impl Read, events: &mpsc::Sender<Event>) -> Result<()> {
    let plain = Decompressor::detect(reader).context(|| "read the archive")?;
    tar::walk(plain, |found| {
        let event = match found {
            Found::File { name, size } => Event::File { name: name.to_owned(), size },
            Found::Piece(piece) => Event::Piece(Bytes::copy_from_slice(piece)),
            Found::Link { name, to } => Event::Link { name: name.to_owned(), to: to.to_owned() },
        };
        events.blocking_send(event).map_err(|_| Error::canceled("the import ended early"))
    })
}

/// The documents of an archive that are kept in memory.
const DOCUMENTS: [&str; 3] = ["oci-layout", "index.json", "manifest.json"];

/// Where the pieces of the current member go.
enum Current<W> {
    /// Nowhere: it is there already.
    Skipped,
    /// Into memory.
    Document { name: String, bytes: Vec<u8> },
    /// Where blobs go.
    Blob { name: String, writer: W, size: u64, head: Vec<u8> },
}

impl<W: Send> Current<W> {
    async fn begin<B: Blobs<Writer = W>>(
        blobs: &B,
        name: String,
        size: u64,
        archived: &mut Archived,
    ) -> Result<Self> {
        if DOCUMENTS.contains(&name.as_str()) {
            if size > MANIFEST_SIZE_MAX {
                let why = format!("archive member {name}: {size} bytes are too many");
                return Err(Error::invalid_argument(why));
            }
            return Ok(Self::Document { name, bytes: Vec::new() });
        }
        let digest = blob_digest(&name)?;
        match blobs.begin(&name, digest.as_ref(), size).await {
            Ok(writer) => Ok(Self::Blob { name, writer, size, head: Vec::new() }),
            Err(err) if err.is_already_exists() => {
                if let Some(digest) = digest {
                    let (size, head) = blobs.head(&digest, Compression::MAGIC_LEN).await?;
                    let compression = Compression::of_magic(&head);
                    archived.blobs.insert(name, Stored { digest, size, compression });
                }
                Ok(Self::Skipped)
            }
            Err(err) => Err(err),
        }
    }

    async fn take<B: Blobs<Writer = W>>(&mut self, blobs: &B, piece: Bytes) -> Result<()> {
        match self {
            Self::Skipped => Ok(()),
            Self::Document { bytes, .. } => {
                bytes.extend_from_slice(&piece);
                Ok(())
            }
            Self::Blob { writer, head, .. } => {
                let wanted = Compression::MAGIC_LEN - head.len();
                head.extend_from_slice(&piece[..wanted.min(piece.len())]);
                blobs.write(writer, piece).await
            }
        }
    }

    async fn end<B: Blobs<Writer = W>>(self, blobs: &B, archived: &mut Archived) -> Result<()> {
        match self {
            Self::Skipped => {}
            Self::Document { name, bytes } => match name.as_str() {
                "oci-layout" => archived.layout = Some(bytes),
                "index.json" => archived.index = Some(bytes),
                _ => archived.manifest = Some(bytes),
            },
            Self::Blob { name, writer, size, head } => {
                let ended = blobs.end(writer).await;
                let digest = ended.context(|| format!("archive member {name}"))?;
                let compression = Compression::of_magic(&head);
                archived.blobs.insert(name, Stored { digest, size, compression });
            }
        }
        Ok(())
    }
}
