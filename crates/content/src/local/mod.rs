//! Blobs as files.
//!
//! # Layout
//! ```text
//! blobs/<algorithm>/<hex>        a blob; mode 0444, never changed
//! ingest/<sha256 of the reference>/
//!     ref                        the reference
//!     startedat, updatedat       RFC 3339; the mtime of `data` is the truth for the latter
//!     total                      expected size, decimal; missing when unknown
//!     data                       the bytes so far
//! ingest/.<anything>             an ingest being removed, or a small blob being made
//! foreign                        digests of blobs that were here at the first start, one a line
//! ```
//! It is containerd's, so a host can change to us and back in place. What containerd left is
//! therefore not ours to collect: blobs in `foreign` are found and read like any other, but not
//! walked, and deleting one leaves the file. An empty file `foreign` hands them over.
//!
//! # Order on disk
//! An ingest is made with `data` last and lost with `data` first, so a directory without `data` or
//! `ref` is a leftover, which [`LocalStore::open`] removes. Commit syncs the bytes, renames them to
//! their blob name, syncs that directory and only then reports success: a blob that anyone was
//! told of is complete after a power cut.
//!
//! An ingest has its directory from the moment that more bytes than a writer gathers go to disk, or
//! that its writer is dropped. A blob whose bytes were gathered whole is written to a file of its
//! own and renamed. `commit_deferred` leaves such a blob unsynced and hands the bytes to its caller;
//! whoever asks for the blob under the same digest meanwhile syncs it first, so that nobody builds
//! on bytes that only somebody else vouches for.
//!
//! # Locks
//! The table of open references is the only lock, held for look-ups only. All file work runs on
//! the blocking pool; writers of different references sync at the same time, which lets the
//! filesystem put them into one journal commit.

mod active;
mod blobs;
mod ingest;
mod ingest_file;
mod reader;
mod writer;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use gantry_core::Digest;
use gantry_errdefs::{Error, Result};

use crate::{Info, Reader, Status, Store, Writer, WriterOptions};
use active::Active;
use blobs::Blobs;
use ingest::Ingests;
use reader::FileReader;
use writer::FileWriter;

/// Size of a blob that is read whole in one go; nearly every manifest and config is smaller.
const SMALL_BYTES: usize = 16 << 10;

/// A [`Store`] of files under one directory, in containerd's layout. Cheap to clone. One process
/// may have a directory open at a time; the daemon's own lock sees to that.
#[derive(Clone, Debug)]
pub struct LocalStore(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    blobs: Blobs,
    ingests: Ingests,
    active: Active,
}

impl LocalStore {
    /// Opens the store at `root`, which is made if missing, and removes what a crash left of
    /// half-made and half-removed ingests.
    ///
    /// # Errors
    /// The I/O error with its path.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        let blobs = Blobs::open(&root)?;
        let ingests = Ingests::open(&root)?;
        Ok(Self(Arc::new(Shared { blobs, ingests, active: Active::default() })))
    }

    /// Runs file work on the blocking pool.
    async fn run<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Arc<Shared>) -> Result<T> + Send + 'static,
    {
        let shared = Arc::clone(&self.0);
        blocking(move || work(&shared)).await
    }
}

#[async_trait]
impl Store for LocalStore {
    async fn info(&self, digest: &Digest) -> Result<Info> {
        let digest = digest.clone();
        self.run(move |s| s.blobs.info(&digest)).await
    }

    async fn reader(&self, digest: &Digest) -> Result<Box<dyn Reader>> {
        let digest = digest.clone();
        let reader = self.run(move |s| FileReader::open(s.blobs.open_blob(&digest)?)).await?;
        Ok(Box::new(reader))
    }

    /// On one thread, which costs less than the hand-over for each.
    async fn read_small(&self, digests: &[Digest], len_max: u64) -> Result<Vec<Option<Bytes>>> {
        let digests = digests.to_vec();
        self.run(move |s| {
            let mut buf = vec![0; SMALL_BYTES];
            let mut read = |digest: &Digest| match s.blobs.open_blob(digest) {
                Ok(file) => reader::whole(file, &mut buf, len_max),
                Err(err) if err.is_not_found() => Ok(None),
                Err(err) => Err(err),
            };
            digests.iter().map(&mut read).collect()
        })
        .await
    }

    async fn delete(&self, digest: &Digest) -> Result<()> {
        let digest = digest.clone();
        self.run(move |s| s.blobs.delete(&digest)).await
    }

    async fn walk(&self, visit: &mut (dyn FnMut(Info) -> Result<()> + Send)) -> Result<()> {
        self.run(|s| s.blobs.list()).await?.into_iter().try_for_each(visit)
    }

    async fn writer(&self, options: WriterOptions) -> Result<Box<dyn Writer>> {
        if options.reference.is_empty() {
            return Err(Error::invalid_argument("ref must not be empty"));
        }
        let lock = self.0.active.lock(&options.reference)?;
        Ok(Box::new(self.run(move |s| FileWriter::open(s, lock, options)).await?))
    }

    async fn status(&self, reference: &str) -> Result<Status> {
        let reference = reference.to_owned();
        self.run(move |s| match s.ingests.status(&reference) {
            Ok(status) => Ok(s.with_live(status)),
            Err(e) => s.active.get(&reference).and_then(|l| l.status(&reference)).ok_or(e),
        })
        .await
    }

    async fn statuses(&self) -> Result<Vec<Status>> {
        self.run(|s| {
            // Those of open writers first: one that goes to disk meanwhile is then seen there.
            let open = s.active.statuses();
            let mut all: Vec<Status> =
                s.ingests.list()?.into_iter().map(|i| s.with_live(i)).collect();
            let on_disk: HashSet<String> = all.iter().map(|i| i.reference.clone()).collect();
            all.extend(open.into_iter().filter(|i| !on_disk.contains(&i.reference)));
            Ok(all)
        })
        .await
    }

    async fn abort(&self, reference: &str) -> Result<()> {
        let reference = reference.to_owned();
        self.run(move |s| {
            // The writer of now: one that opens after the removal has nothing to do with it.
            let live = s.active.get(&reference).filter(|l| l.status(&reference).is_some());
            // Marked first: a writer that makes its directory after the removal sees the mark.
            let open = live.is_some_and(|live| live.mark_aborted());
            match s.ingests.remove(&reference) {
                Err(e) if e.is_not_found() && open => Ok(()),
                removed => removed,
            }
        })
        .await
    }

    async fn settle(&self, digests: &[Digest]) -> Result<()> {
        let digests = digests.to_vec();
        self.run(move |s| s.blobs.settle(&digests)).await
    }

    async fn restore(&self, blobs: Vec<(Digest, Bytes)>) -> Result<()> {
        self.run(move |s| s.blobs.restore(&blobs)).await
    }
}

impl Shared {
    /// The state on disk, overlaid with what the open writer knows better.
    fn with_live(&self, mut status: Status) -> Status {
        if let Some(live) = self.active.get(&status.reference) {
            status.offset = live.offset().max(status.offset);
            status.expected = live.expected();
        }
        status
    }
}

/// Runs `work` on the blocking pool. It runs to its end even when the caller goes away.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => match e.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Error::unavailable("content store: the runtime is shutting down")),
        },
    }
}

#[cfg(test)]
mod tests;
