//! Reading the members of an archive into the content store.
//!
//! A thread reads and parses; what it finds comes over a bounded channel to the task that writes
//! content. When that task ends early, the thread fails at its next send.

use std::collections::BTreeMap;
use std::io::Read;

use bytes::Bytes;
use gantry_archive::Decompressor;
use gantry_archive::tar::{self, Found, Links};
use gantry_content::WriterOptions;
use gantry_core::image::{MANIFEST_SIZE_MAX, blob_digest};
use gantry_core::{Context, Digest, Labels};
use gantry_errdefs::{Error, Result, ResultExt};
use gantry_metadata::{ContentWriter, Db};
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio_util::io::SyncIoBridge;

use crate::content;
use crate::unfinished::Unfinished;
use crate::unpack::unique;

/// Pieces between the thread that reads and the task that writes.
const PIECE_COUNT_MAX: usize = 16;

/// A blob of the archive in the content store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    /// Its digest.
    pub(super) digest: Digest,
    /// Its size in bytes.
    pub(super) size: u64,
    /// Its first bytes, which tell a layer's compression.
    pub(super) head: Vec<u8>,
}

/// What an archive held.
#[derive(Debug, Default)]
pub(super) struct Archived {
    /// `oci-layout`.
    pub(super) layout: Option<Vec<u8>>,
    /// `index.json`.
    pub(super) index: Option<Vec<u8>>,
    /// docker's `manifest.json`.
    pub(super) manifest: Option<Vec<u8>>,
    blobs: BTreeMap<String, Stored>,
    links: Links,
}

impl Archived {
    /// The blob a member name stands for, links followed.
    pub(super) fn blob(&self, name: &str) -> Option<&Stored> {
        self.blobs.get(&self.links.follow(name)?)
    }
}

/// What comes over the channel.
enum Event {
    /// A file begins; pieces follow until the next event of another kind.
    File { name: String, size: u64 },
    /// A piece of it.
    Piece(Bytes),
    /// A link from one member to another.
    Link { name: String, to: String },
}

/// Reads an archive to its end.
///
/// # Errors
/// See [`super::import`].
pub(super) async fn read(
    db: &Db,
    ctx: &Context,
    reader: impl AsyncRead + Send + Unpin + 'static,
) -> Result<Archived> {
    let (events, mut arriving) = mpsc::channel(PIECE_COUNT_MAX);
    let bridge = SyncIoBridge::new(reader);
    let work = tokio::task::spawn_blocking(move || parse(bridge, &events));
    let stored = store(db, ctx, &mut arriving).await?;
    // Why the channel ended, if not at the archive's end.
    crate::differ::joined(work.await)?;
    Ok(stored)
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

/// Where the pieces of the current member go.
enum Sink {
    /// Nowhere: it is in the store already.
    Skip,
    /// Into memory.
    Memory { name: String, bytes: Vec<u8> },
    /// Into the content store.
    Blob(Box<Blob>),
}

/// A blob on its way into the content store.
struct Blob {
    name: String,
    writer: ContentWriter,
    expected: Option<Digest>,
    stored: Progress,
    unfinished: Unfinished,
}

#[derive(Default)]
struct Progress {
    size: u64,
    head: Vec<u8>,
}

async fn store(db: &Db, ctx: &Context, arriving: &mut mpsc::Receiver<Event>) -> Result<Archived> {
    let mut archived = Archived::default();
    let mut sink = Sink::Skip;
    let run = unique("import");
    while let Some(event) = arriving.recv().await {
        match event {
            Event::File { name, size } => {
                finish(sink, &mut archived).await?;
                sink = begin(db, ctx, &run, name, size, &mut archived).await?;
            }
            Event::Piece(piece) => match &mut sink {
                Sink::Skip => {}
                Sink::Memory { bytes, .. } => bytes.extend_from_slice(&piece),
                Sink::Blob(blob) => {
                    let Blob { writer, stored, .. } = &mut **blob;
                    stored.size += piece.len() as u64;
                    let wanted = gantry_archive::Compression::MAGIC_LEN - stored.head.len();
                    stored.head.extend_from_slice(&piece[..wanted.min(piece.len())]);
                    writer.write(piece).await?;
                }
            },
            Event::Link { name, to } => archived.links.insert(&name, &to),
        }
    }
    finish(sink, &mut archived).await?;
    Ok(archived)
}

/// Opens the place for a file of the archive.
async fn begin(
    db: &Db,
    ctx: &Context,
    run: &str,
    name: String,
    size: u64,
    archived: &mut Archived,
) -> Result<Sink> {
    if matches!(name.as_str(), "oci-layout" | "index.json" | "manifest.json") {
        if size > MANIFEST_SIZE_MAX {
            let text = format!("archive member {name}: {size} bytes are too many");
            return Err(Error::invalid_argument(text));
        }
        return Ok(Sink::Memory { name, bytes: Vec::new() });
    }
    let expected = blob_digest(&name)?;
    let reference = match &expected {
        Some(digest) => format!("blob-{run}-{digest}"),
        None => format!("tar-{run}-{name}"),
    };
    let options = WriterOptions { reference, total: size, expected: expected.clone() };
    match Unfinished::open(db, ctx, options).await {
        Ok((unfinished, writer)) => {
            let stored = Progress::default();
            Ok(Sink::Blob(Box::new(Blob { name, writer, expected, stored, unfinished })))
        }
        Err(err) if err.is_already_exists() => {
            if let Some(digest) = expected {
                let stored = look_up(db, ctx, digest).await?;
                archived.blobs.insert(name, stored);
            }
            Ok(Sink::Skip)
        }
        Err(err) => Err(err),
    }
}

async fn look_up(db: &Db, ctx: &Context, digest: Digest) -> Result<Stored> {
    let reader = db.content().reader(ctx, &digest).await?;
    let head = reader.read_at(0, gantry_archive::Compression::MAGIC_LEN).await?;
    Ok(Stored { digest, size: reader.size(), head: head.to_vec() })
}

/// Commits the file that ended.
async fn finish(sink: Sink, archived: &mut Archived) -> Result<()> {
    match sink {
        Sink::Skip => {}
        Sink::Memory { name, bytes } => match name.as_str() {
            "oci-layout" => archived.layout = Some(bytes),
            "index.json" => archived.index = Some(bytes),
            _ => archived.manifest = Some(bytes),
        },
        Sink::Blob(blob) => {
            let Blob { name, writer, expected, stored, unfinished } = *blob;
            let digest = writer.digest();
            if let Some(expected) = &expected
                && *expected != digest
            {
                return Err(Error::invalid_argument(format!(
                    "archive member {name}: its bytes have digest {digest}"
                )));
            }
            let commit = content::commit(writer, stored.size, &digest, Labels::new());
            match unfinished.end(commit).await {
                Err(err) if !err.is_already_exists() => {
                    return Err(err.context(format!("archive member {name}")));
                }
                _ => {}
            }
            archived.blobs.insert(name, Stored { digest, size: stored.size, head: stored.head });
        }
    }
    Ok(())
}
