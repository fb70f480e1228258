//! Reading the members of an archive into the content store.
//!
//! A thread reads and parses; what it finds comes over a bounded channel to the task that writes
//! content. When that task ends early, the thread fails at its next send.

use std::collections::BTreeMap;
use std::io::Read;

use bytes::Bytes;
use gantry_archive::tar::{self, Found, Links};
use gantry_archive::{Compression, Decompressor};
use gantry_core::image::{MANIFEST_SIZE_MAX, blob_digest};
use gantry_core::{Algorithm, Digest, Digester, Labels};
use gantry_errdefs::{Error, Result, ResultExt};
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio_util::io::SyncIoBridge;

use crate::client::Client;
use crate::content::{ContentWriter, WriterOptions};

/// Pieces between the thread that reads and the task that writes.
const PIECE_COUNT_MAX: usize = 16;

/// A blob of the archive, in the content store.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) digest: Digest,
    /// In bytes.
    pub(super) size: i64,
    /// Its first bytes, which tell a layer's compression.
    pub(super) head: Vec<u8>,
}

/// What an archive held.
#[derive(Debug, Default)]
pub(super) struct Archived {
    /// `index.json` of an OCI layout.
    pub(super) index: Option<Vec<u8>>,
    /// docker's `manifest.json`.
    pub(super) manifest: Option<Vec<u8>>,
    blobs: BTreeMap<String, Stored>,
    links: Links,
}

/// What comes over the channel.
enum Event {
    /// A file begins; its pieces follow.
    File { name: String, size: u64 },
    /// A piece of it.
    Piece(Bytes),
    /// One member is another.
    Link { name: String, to: String },
}

impl Archived {
    /// The blob that a member's name stands for, links followed.
    pub(super) fn blob(&self, name: &str) -> Option<&Stored> {
        self.blobs.get(&self.links.follow(name)?)
    }
}

/// Reads an archive to its end.
pub(super) async fn read(
    client: &Client,
    archive: impl AsyncRead + Unpin + Send + 'static,
) -> Result<Archived> {
    let (give, mut take) = mpsc::channel(PIECE_COUNT_MAX);
    let bridge = SyncIoBridge::new(archive);
    let reading = tokio::task::spawn_blocking(move || parse(bridge, &give));
    let mut archived = Archived::default();
    let random: String = std::iter::repeat_with(fastrand::alphanumeric).take(12).collect();
    let mut sink = Sink::Skip;
    while let Some(found) = take.recv().await {
        match found {
            Event::File { name, size } => {
                sink.finish(&mut archived).await?;
                sink = Sink::open(client, &random, name, size, &mut archived).await?;
            }
            Event::Piece(piece) => sink.take(piece).await?,
            Event::Link { name, to } => archived.links.insert(&name, &to),
        }
    }
    sink.finish(&mut archived).await?;
    reading.await.map_err(|e| Error::internal(format!("reading an archive: {e}")))??;
    Ok(archived)
}

fn parse(reader: impl Read, events: &mpsc::Sender<Event>) -> Result<()> {
    let plain = Decompressor::detect(reader).context(|| "reading the archive")?;
    tar::walk(plain, |found| {
        let event = match found {
            Found::File { name, size } => Event::File { name: name.to_owned(), size },
            Found::Piece(piece) => Event::Piece(Bytes::copy_from_slice(piece)),
            Found::Link { name, to } => Event::Link { name: name.to_owned(), to: to.to_owned() },
        };
        events.blocking_send(event).map_err(|_| Error::canceled("import"))
    })
}

/// Where the pieces of the current member go.
enum Sink {
    Skip,
    Memory { name: String, bytes: Vec<u8> },
    Blob(Box<Blob>),
}

/// A blob on its way into the content store.
struct Blob {
    name: String,
    writer: ContentWriter,
    size: i64,
    head: Vec<u8>,
    digest: Naming,
}

/// How the digest of a blob is known.
enum Naming {
    Promised(Digest),
    Counted(Digester),
}

impl Sink {
    async fn open(
        client: &Client,
        random: &str,
        name: String,
        size: u64,
        archived: &mut Archived,
    ) -> Result<Self> {
        if matches!(name.as_str(), "oci-layout" | "index.json" | "manifest.json") {
            if size > MANIFEST_SIZE_MAX {
                let why = format!("archive member {name}: {size} bytes are too many");
                return Err(Error::invalid_argument(why));
            }
            return Ok(Self::Memory { name, bytes: Vec::new() });
        }
        let expected = blob_digest(&name)?;
        // Of bytes that nobody has named yet, another import has a write of its own.
        let reference = match &expected {
            Some(digest) => format!("import-{digest}"),
            None => format!("import-{random}-{name}"),
        };
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        let options = WriterOptions { reference, total: size, expected: expected.clone() };
        match client.content().writer(options).await {
            Ok(mut writer) => {
                writer.restart().await?;
                let digest = expected.map_or_else(
                    || Naming::Counted(Digester::new(Algorithm::Sha256)),
                    Naming::Promised,
                );
                Ok(Self::Blob(Box::new(Blob { name, writer, size, head: Vec::new(), digest })))
            }
            Err(e) if e.is_already_exists() => {
                if let Some(digest) = expected {
                    let head_len = i64::try_from(Compression::MAGIC_LEN).unwrap_or(0).min(size);
                    let head = client.content().read_at(&digest, 0, head_len).await?.to_vec();
                    archived.blobs.insert(name, Stored { digest, size, head });
                }
                Ok(Self::Skip)
            }
            Err(e) => Err(e),
        }
    }

    async fn take(&mut self, piece: Bytes) -> Result<()> {
        match self {
            Self::Skip => Ok(()),
            Self::Memory { bytes, .. } => {
                bytes.extend_from_slice(&piece);
                Ok(())
            }
            Self::Blob(blob) => {
                let wanted = Compression::MAGIC_LEN - blob.head.len();
                blob.head.extend_from_slice(&piece[..wanted.min(piece.len())]);
                if let Naming::Counted(digester) = &mut blob.digest {
                    digester.update(&piece);
                }
                blob.writer.write(piece).await
            }
        }
    }

    async fn finish(self, archived: &mut Archived) -> Result<()> {
        match self {
            Self::Skip => {}
            Self::Memory { name, bytes } => match name.as_str() {
                "index.json" => archived.index = Some(bytes),
                "manifest.json" => archived.manifest = Some(bytes),
                _ => {}
            },
            Self::Blob(blob) => {
                let Blob { name, writer, size, head, digest } = *blob;
                match writer.commit(&Labels::new()).await {
                    Err(e) if !e.is_already_exists() => {
                        return Err(e.context(format!("archive member {name}")));
                    }
                    _ => {}
                }
                let digest = match digest {
                    Naming::Promised(digest) => digest,
                    Naming::Counted(digester) => digester.finish(),
                };
                archived.blobs.insert(name, Stored { digest, size, head });
            }
        }
        Ok(())
    }
}
