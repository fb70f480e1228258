//! Reading the members of an archive into the content store.
//!
//! A thread reads and parses; what it finds comes over a bounded channel to the task that writes
//! content. When that task ends early, the thread fails at its next send.

use std::collections::BTreeMap;
use std::io::Read;

use bytes::Bytes;
use gantry_archive::tar::{Member, MemberKind, Members};
use gantry_archive::{Compression, Decompressor, Limits};
use gantry_core::image::MANIFEST_SIZE_MAX;
use gantry_core::{Algorithm, Digest, Digester, Labels};
use gantry_errdefs::{Error, Result, ResultExt};
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio_util::io::SyncIoBridge;

use crate::client::Client;
use crate::content::{ContentWriter, WriterOptions};

/// Pieces between the thread that reads and the task that writes.
const PIECE_COUNT_MAX: usize = 16;

/// Members of one archive; an image has a few for each layer.
const MEMBER_COUNT_MAX: usize = 100_000;

/// Times a link between members is followed.
const LINK_COUNT_MAX: usize = 16;

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
    links: BTreeMap<String, String>,
}

/// What comes over the channel.
enum Found {
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
        let mut name = clean(name);
        for _ in 0..LINK_COUNT_MAX {
            match self.links.get(&name) {
                Some(to) => name.clone_from(to),
                None => return self.blobs.get(&name),
            }
        }
        None
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
            Found::File { name, size } => {
                sink.finish(&mut archived).await?;
                sink = Sink::open(client, &random, name, size, &mut archived).await?;
            }
            Found::Piece(piece) => sink.take(piece).await?,
            Found::Link { name, to } => drop(archived.links.insert(name, to)),
        }
    }
    sink.finish(&mut archived).await?;
    reading.await.map_err(|e| Error::internal(format!("reading an archive: {e}")))??;
    Ok(archived)
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
        let name = clean(&name);
        match kind {
            MemberKind::File => {
                send(Found::File { name, size })?;
                members.content(|piece| send(Found::Piece(Bytes::copy_from_slice(piece))))?;
            }
            MemberKind::Symlink(to) => {
                let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
                let to = clean(&format!("{dir}/{to}"));
                send(Found::Link { name, to })?;
            }
            MemberKind::Hardlink(to) => send(Found::Link { name, to: clean(&to) })?,
            MemberKind::Dir => {}
            MemberKind::Other => {
                let why = format!("archive member {name}: it is no file");
                return Err(Error::invalid_argument(why));
            }
        }
    }
    Ok(())
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

/// The digest a member's name promises: `blobs/<algorithm>/<hex>`.
fn blob_digest(name: &str) -> Result<Option<Digest>> {
    let Some(rest) = name.strip_prefix("blobs/") else { return Ok(None) };
    let digest: Result<Digest> = rest.replacen('/', ":", 1).parse();
    digest.map(Some).context(|| format!("archive member {name}"))
}

/// A member name without `.`, `..` and doubled slashes. Names only find each other here: no file
/// is made by them.
fn clean(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}
