//! The bytes of an open ingest: gathered in memory, in a file, on the way to a blob.

use std::fs::{File, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};

use bytes::Bytes;
use gantry_core::{Algorithm, Digest, Digester};
use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_sys::durable::Writeback;

use super::Shared;
use super::active::RefLock;
use super::ingest::Ingest;

/// Bytes gathered before they are written: registries and gRPC clients send pieces of 16 to 32
/// KiB, and a trip to the blocking pool for each would cost more than the write.
const GATHER_BYTES_MAX: usize = 256 * 1024;

/// Bytes read at once to hash what is stored already.
const REHASH_BYTES: usize = 1024 * 1024;

/// Largest blob whose making durable is left to the caller of `commit_deferred`. Manifests and
/// configs are below; larger ones would cost more in the caller's database than two syncs.
const DEFERRED_LEN_MAX: usize = 32 * 1024;

#[derive(Debug)]
pub(super) struct IngestFile {
    pub(super) lock: RefLock,
    ingest: Ingest,
    /// Size told when it was opened.
    total: u64,
    /// None as long as all bytes are gathered.
    file: Option<File>,
    algorithm: Algorithm,
    /// Of everything stored and gathered.
    digester: Digester,
    /// Bytes in the file.
    stored: u64,
    /// Bytes the kernel was asked to write back.
    writeback: Writeback,
    /// Bytes to be stored after those in the file.
    gathered: Vec<u8>,
    /// A write failed, so file and digester may differ; only reopening helps.
    broken: bool,
    /// The ingest has become a blob or was dropped.
    finished: bool,
}

impl IngestFile {
    /// An ingest that has nothing on disk.
    pub(super) fn fresh(lock: RefLock, ingest: Ingest, algorithm: Algorithm, total: u64) -> Self {
        Self {
            lock,
            ingest,
            total,
            file: None,
            algorithm,
            digester: Digester::new(algorithm),
            stored: 0,
            writeback: Writeback::default(),
            gathered: Vec::new(),
            broken: false,
            finished: false,
        }
    }

    /// An ingest whose bytes so far are in `file`.
    pub(super) fn stored(
        lock: RefLock,
        ingest: Ingest,
        file: File,
        algorithm: Algorithm,
    ) -> Result<Self> {
        let mut stored = Self::fresh(lock, ingest, algorithm, 0);
        stored.file = Some(file);
        // Until the bytes are known, dropping it must not touch them.
        stored.finished = true;
        stored.rehash()?;
        stored.finished = false;
        stored.writeback = Writeback::after(stored.stored);
        stored.lock.set_offset(stored.stored);
        Ok(stored)
    }

    /// Digest of everything stored and gathered.
    pub(super) fn digest(&self) -> Digest {
        self.digester.so_far()
    }

    /// A panic may have left file and digester apart.
    pub(super) fn break_off(&mut self) {
        self.broken = true;
    }

    /// Stores what was gathered, then `data`.
    pub(super) fn append(&mut self, data: &[u8]) -> Result<()> {
        self.check()?;
        self.flush()?;
        self.digester.update(data);
        self.store(data)
    }

    pub(super) fn offset(&self) -> u64 {
        self.stored + self.gathered.len() as u64
    }

    fn check(&self) -> Result<()> {
        self.lock.check()?;
        if self.broken {
            let reference = self.lock.reference();
            return Err(Error::unavailable(format!(
                "ref {reference}: an earlier write failed; open it again to resume"
            )));
        }
        Ok(())
    }

    /// Takes `data` without going to disk; false when there is too much gathered for that.
    pub(super) fn gather(&mut self, data: &[u8]) -> Result<bool> {
        if self.gathered.len() + data.len() > GATHER_BYTES_MAX {
            return Ok(false);
        }
        self.check()?;
        self.digester.update(data);
        self.gathered.extend_from_slice(data);
        self.lock.set_offset(self.offset());
        Ok(true)
    }

    /// Stores what was gathered.
    fn flush(&mut self) -> Result<()> {
        let gathered = std::mem::take(&mut self.gathered);
        self.store(&gathered)
    }

    /// Stores bytes that are hashed already.
    fn store(&mut self, data: &[u8]) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.make()?;
        let file = self.file.as_ref().expect("made above");
        let written = gantry_failpoint::hit("content.ingest.write")
            .and_then(|()| file.write_all_at(data, self.stored));
        if let Err(e) = written {
            self.broken = true;
            self.lock.set_offset(self.stored);
            return Err(Error::io(format!("ref {}: write", self.lock.reference()), e));
        }
        self.stored += data.len() as u64;
        self.lock.set_offset(self.stored);
        self.writeback.wrote(file, self.stored);
        Ok(())
    }

    pub(super) fn truncate(&mut self, size: u64) -> Result<()> {
        self.check()?;
        if size > self.offset() {
            return Err(Error::invalid_argument(format!(
                "ref {}: cannot truncate to {size}, only {} bytes are stored",
                self.lock.reference(),
                self.offset()
            )));
        }
        if self.file.is_some() {
            self.flush()?;
        }
        self.broken = true;
        match &self.file {
            Some(file) => {
                file.set_len(size).context(|| format!("ref {}: truncate", self.lock.reference()))?
            }
            // Not more than was gathered, as checked above.
            None => self.gathered.truncate(usize::try_from(size).unwrap_or(usize::MAX)),
        }
        self.rehash()?;
        self.writeback = Writeback::after(self.stored);
        self.lock.set_offset(self.offset());
        self.broken = false;
        Ok(())
    }

    /// Hashes everything stored and gathered anew.
    fn rehash(&mut self) -> Result<()> {
        (self.digester, self.stored) = match &self.file {
            Some(file) => rehash(file, self.algorithm)
                .context(|| format!("ref {}: read what is stored", self.lock.reference()))?,
            None => (Digester::new(self.algorithm), 0),
        };
        self.digester.update(&self.gathered);
        Ok(())
    }

    fn set_mode(&self, mode: u32) -> std::io::Result<()> {
        match &self.file {
            Some(file) => file.set_permissions(Permissions::from_mode(mode)),
            None => Ok(()),
        }
    }

    /// Makes the ingest on disk, unless it is there.
    fn make(&mut self) -> Result<()> {
        if self.file.is_some() {
            return Ok(());
        }
        let file = self.ingest.make(self.lock.reference(), self.total, self.lock.since())?;
        // An abort looks for the directory after its mark, we for the mark after the directory.
        self.check().inspect_err(|_| self.ingest.discard())?;
        self.file = Some(file);
        Ok(())
    }

    pub(super) fn commit(
        &mut self,
        shared: &Shared,
        size: u64,
        expected: Option<Digest>,
    ) -> Result<Digest> {
        let digest = self.verified(shared, size, expected)?;
        if self.file.is_none() {
            self.publish_gathered(shared, &digest, true)?;
            return Ok(digest);
        }
        self.flush()?;
        self.sync()?;
        self.lock.begin_commit()?;
        match shared.blobs.publish(&self.ingest.data(), &digest) {
            Ok(true) => {}
            Ok(false) => return Err(self.duplicate(&digest)),
            Err(e) => {
                // Whoever resumes needs not be root.
                let _ = self.set_mode(0o644);
                return Err(e);
            }
        }
        self.finished = true;
        self.ingest.discard();
        Ok(digest)
    }

    pub(super) fn commit_deferred(
        &mut self,
        shared: &Shared,
        size: u64,
        expected: Option<Digest>,
    ) -> Result<(Digest, Option<Bytes>)> {
        if self.file.is_some() || self.gathered.len() > DEFERRED_LEN_MAX {
            return Ok((self.commit(shared, size, expected)?, None));
        }
        let digest = self.verified(shared, size, expected)?;
        self.publish_gathered(shared, &digest, false)?;
        Ok((digest, Some(std::mem::take(&mut self.gathered).into())))
    }

    /// Checks everything that a commit depends on; AlreadyExists drops the ingest.
    fn verified(&mut self, shared: &Shared, size: u64, expected: Option<Digest>) -> Result<Digest> {
        self.check()?;
        let digest = self.verify(size, expected.as_ref())?;
        if shared.blobs.exists(&digest)? {
            return Err(self.duplicate(&digest));
        }
        Ok(digest)
    }

    /// Makes a blob of what was gathered, through a file that nobody knows.
    fn publish_gathered(&mut self, shared: &Shared, digest: &Digest, durable: bool) -> Result<()> {
        let path = shared.ingests.fresh_file();
        let made = (|| {
            gantry_failpoint::hit("content.ingest.create")?;
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o444).open(&path)?;
            gantry_failpoint::hit("content.ingest.write")?;
            file.write_all(&self.gathered)?;
            if durable {
                gantry_failpoint::hit("content.ingest.sync")?;
                file.sync_all()?;
            }
            Ok::<(), std::io::Error>(())
        })()
        .context(|| format!("ref {}: write", self.lock.reference()));
        let published = made.and_then(|()| self.lock.begin_commit()).and_then(|()| {
            if durable {
                shared.blobs.publish(&path, digest)
            } else {
                shared.blobs.publish_deferred(&path, digest)
            }
        });
        if !matches!(published, Ok(true)) {
            // The name is free for the next start at the latest.
            let _ = std::fs::remove_file(&path);
        }
        if published? {
            self.finished = true;
            Ok(())
        } else {
            Err(self.duplicate(digest))
        }
    }

    /// Compares what is stored with what is wanted, and returns its digest.
    fn verify(&mut self, size: u64, expected: Option<&Digest>) -> Result<Digest> {
        let reference = self.lock.reference();
        let have = self.offset();
        if size > 0 && size != have {
            return Err(Error::failed_precondition(format!(
                "ref {reference}: unexpected commit size {have}, expected {size}"
            )));
        }
        if let Some(expected) = expected
            && expected.algorithm() != self.algorithm
        {
            self.algorithm = expected.algorithm();
            self.rehash()?;
        }
        let digest = self.digester.so_far();
        if let Some(expected) = expected
            && *expected != digest
        {
            let reference = self.lock.reference();
            return Err(Error::failed_precondition(format!(
                "ref {reference}: unexpected commit digest {digest}, expected {expected}"
            )));
        }
        Ok(digest)
    }

    /// Makes bytes and mode durable. After a failed sync the kernel may have dropped the bytes
    /// while the page cache still shows them, so a resumed ingest would hash right and be wrong on
    /// disk: it is dropped.
    fn sync(&mut self) -> Result<()> {
        let synced = self
            .set_mode(0o444)
            .and_then(|()| gantry_failpoint::hit("content.ingest.sync"))
            .and_then(|()| self.file.as_ref().map_or(Ok(()), File::sync_all));
        synced.map_err(|e| {
            self.drop_ingest();
            Error::io(format!("ref {}: sync, ingest dropped", self.lock.reference()), e)
        })
    }

    fn duplicate(&mut self, digest: &Digest) -> Error {
        self.drop_ingest();
        Error::already_exists(format!("content {digest}"))
    }

    fn drop_ingest(&mut self) {
        self.finished = true;
        self.ingest.discard();
    }
}

impl Drop for IngestFile {
    /// Keeps the ingest and what was gathered for the next writer. At most [`GATHER_BYTES_MAX`] bytes go to the
    /// page cache here, so this may run on an async thread.
    fn drop(&mut self) {
        if self.finished || self.check().is_err() {
            return;
        }
        if let Err(err) = self.make().and_then(|()| self.flush()) {
            tracing::warn!(%err, "the last bytes of an ingest are lost; it resumes before them");
        }
        self.ingest.touch();
    }
}

/// Hashes a file from its start; returns the digester and the length.
fn rehash(file: &File, algorithm: Algorithm) -> std::io::Result<(Digester, u64)> {
    let mut digester = Digester::new(algorithm);
    let mut offset = 0;
    let len = file.metadata()?.len();
    if len == 0 {
        return Ok((digester, 0));
    }
    let mut buf = vec![0; REHASH_BYTES];
    loop {
        let n = file.read_at(&mut buf, offset)?;
        if n == 0 {
            return Ok((digester, offset));
        }
        digester.update(&buf[..n]);
        offset += n as u64;
    }
}
