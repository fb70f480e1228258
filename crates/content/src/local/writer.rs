//! Ingests open for writing.

use std::fs::{File, Permissions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use gantry_core::{Algorithm, Digest, Digester};
use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_sys::durable::start_writeback;

use super::active::RefLock;
use super::ingest::Ingest;
use super::{Shared, blocking};
use crate::{Status, Writer, WriterOptions};

/// Bytes gathered before they are written: registries and gRPC clients send pieces of 16 to 32
/// KiB, and a trip to the blocking pool for each would cost more than the write.
const GATHER_BYTES_MAX: usize = 256 * 1024;

/// Bytes written before the kernel is asked to start putting them on disk, so that the sync at the
/// end of a big layer has little left to do.
const WRITEBACK_BYTES: u64 = 8 * 1024 * 1024;

/// Bytes read at once to hash what is stored already.
const REHASH_BYTES: usize = 1024 * 1024;

/// An ingest. File work runs on the blocking pool and holds `file` there; the lock on the
/// reference is in it, so that a call that was cancelled half way keeps the reference until its
/// file work has ended.
#[derive(Debug)]
pub(super) struct FileWriter {
    shared: Arc<Shared>,
    total: u64,
    started_at: SystemTime,
    updated_at: SystemTime,
    file: Arc<Mutex<IngestFile>>,
}

#[derive(Debug)]
struct IngestFile {
    lock: RefLock,
    ingest: Ingest,
    file: File,
    algorithm: Algorithm,
    /// Of everything stored and gathered.
    digester: Digester,
    /// Bytes in the file.
    stored: u64,
    /// Bytes the kernel was asked to write back.
    written_back: u64,
    /// Bytes to be stored after those in the file.
    gathered: Vec<u8>,
    /// A write failed, so file and digester may differ; only reopening helps.
    broken: bool,
    /// The ingest has become a blob or was dropped.
    finished: bool,
}

impl FileWriter {
    /// Opens or resumes the ingest that `lock` is for.
    pub(super) fn open(
        shared: &Arc<Shared>,
        lock: RefLock,
        options: WriterOptions,
    ) -> Result<Self> {
        let reference = options.reference;
        if let Some(expected) = &options.expected
            && shared.blobs.exists(expected)?
        {
            return Err(Error::already_exists(format!("content {expected}")));
        }
        let ingest = shared.ingests.at(&reference);
        let file = ingest.open(&reference, options.total)?;
        let status = ingest
            .status()?
            .ok_or_else(|| Error::not_found(format!("ingest ref {reference:?}: aborted")))?;
        if options.total > 0 && status.total > 0 && options.total != status.total {
            return Err(Error::failed_precondition(format!(
                "ref {reference}: total {} differs from the {} the ingest was opened with",
                options.total, status.total
            )));
        }
        let algorithm = options.expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let (digester, stored) =
            rehash(&file, algorithm).context(|| format!("ref {reference}: read what is stored"))?;
        lock.set_offset(stored);
        if let Some(expected) = options.expected {
            lock.set_expected(expected);
        }
        Ok(Self {
            shared: Arc::clone(shared),
            total: options.total.max(status.total),
            started_at: status.started_at,
            updated_at: status.updated_at,
            file: Arc::new(Mutex::new(IngestFile {
                lock,
                ingest,
                file,
                algorithm,
                digester,
                stored,
                written_back: stored,
                gathered: Vec::new(),
                broken: false,
                finished: false,
            })),
        })
    }

    /// Locked by the blocking pool only while a call of ours is under way, or was cancelled.
    fn file(&self) -> MutexGuard<'_, IngestFile> {
        hold(&self.file)
    }

    async fn run<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut IngestFile) -> Result<T> + Send + 'static,
    {
        let file = Arc::clone(&self.file);
        blocking(move || work(&mut hold(&file))).await
    }
}

#[async_trait]
impl Writer for FileWriter {
    async fn write(&mut self, data: Bytes) -> Result<()> {
        self.updated_at = SystemTime::now();
        {
            let mut file = self.file();
            if file.gathered.len() + data.len() <= GATHER_BYTES_MAX {
                return file.gather(&data);
            }
        }
        self.run(move |file| {
            file.check()?;
            file.flush()?;
            file.digester.update(&data);
            file.store(&data)
        })
        .await
    }

    fn status(&self) -> Status {
        let file = self.file();
        Status {
            reference: file.lock.reference().to_owned(),
            offset: file.offset(),
            total: self.total,
            expected: file.lock.expected(),
            started_at: self.started_at,
            updated_at: self.updated_at,
        }
    }

    fn digest(&self) -> Digest {
        self.file().digester.so_far()
    }

    async fn truncate(&mut self, size: u64) -> Result<()> {
        self.updated_at = SystemTime::now();
        self.run(move |file| file.truncate(size)).await
    }

    async fn commit(self: Box<Self>, size: u64, expected: Option<&Digest>) -> Result<Digest> {
        let expected = expected.cloned().or_else(|| self.file().lock.expected());
        let shared = Arc::clone(&self.shared);
        self.run(move |file| file.commit(&shared, size, expected)).await
    }
}

impl IngestFile {
    fn offset(&self) -> u64 {
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

    fn gather(&mut self, data: &[u8]) -> Result<()> {
        self.check()?;
        self.digester.update(data);
        self.gathered.extend_from_slice(data);
        self.lock.set_offset(self.offset());
        Ok(())
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
        let written = gantry_failpoint::hit("content.ingest.write")
            .and_then(|()| self.file.write_all_at(data, self.stored));
        if let Err(e) = written {
            self.broken = true;
            self.lock.set_offset(self.stored);
            return Err(Error::io(format!("ref {}: write", self.lock.reference()), e));
        }
        self.stored += data.len() as u64;
        self.lock.set_offset(self.stored);
        if self.stored - self.written_back >= WRITEBACK_BYTES {
            start_writeback(&self.file, self.written_back, self.stored - self.written_back);
            self.written_back = self.stored;
        }
        Ok(())
    }

    fn truncate(&mut self, size: u64) -> Result<()> {
        self.check()?;
        self.flush()?;
        if size > self.stored {
            return Err(Error::invalid_argument(format!(
                "ref {}: cannot truncate to {size}, only {} bytes are stored",
                self.lock.reference(),
                self.stored
            )));
        }
        self.broken = true;
        let what = || format!("ref {}: truncate", self.lock.reference());
        self.file.set_len(size).context(what)?;
        let (digester, stored) = rehash(&self.file, self.algorithm).context(what)?;
        (self.digester, self.stored, self.written_back) = (digester, stored, stored);
        self.lock.set_offset(stored);
        self.broken = false;
        Ok(())
    }

    fn commit(&mut self, shared: &Shared, size: u64, expected: Option<Digest>) -> Result<Digest> {
        self.check()?;
        self.flush()?;
        let digest = self.verify(size, expected.as_ref())?;
        if shared.blobs.exists(&digest)? {
            return Err(self.duplicate(&digest));
        }
        self.sync()?;
        match shared.blobs.publish(&self.ingest.data(), &digest) {
            Ok(true) => {}
            Ok(false) => return Err(self.duplicate(&digest)),
            // Between the check above and the rename an abort may have come.
            Err(e) => {
                // Whoever resumes needs not be root.
                let _ = self.file.set_permissions(Permissions::from_mode(0o644));
                return Err(self.lock.check().err().unwrap_or(e));
            }
        }
        self.finished = true;
        self.ingest.discard();
        Ok(digest)
    }

    /// Compares what is stored with what is wanted, and returns its digest.
    fn verify(&mut self, size: u64, expected: Option<&Digest>) -> Result<Digest> {
        let reference = self.lock.reference();
        if size > 0 && size != self.stored {
            return Err(Error::failed_precondition(format!(
                "ref {reference}: unexpected commit size {}, expected {size}",
                self.stored
            )));
        }
        if let Some(expected) = expected
            && expected.algorithm() != self.algorithm
        {
            self.algorithm = expected.algorithm();
            self.digester = rehash(&self.file, self.algorithm)
                .context(|| format!("ref {reference}: read what is stored"))?
                .0;
        }
        let digest = self.digester.so_far();
        if let Some(expected) = expected
            && *expected != digest
        {
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
            .file
            .set_permissions(Permissions::from_mode(0o444))
            .and_then(|()| gantry_failpoint::hit("content.ingest.sync"))
            .and_then(|()| self.file.sync_all());
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
    /// Keeps what was gathered for the next writer. At most [`GATHER_BYTES_MAX`] bytes go to the
    /// page cache here, so this may run on an async thread.
    fn drop(&mut self) {
        if self.finished || self.check().is_err() {
            return;
        }
        if let Err(err) = self.flush() {
            tracing::warn!(%err, "the last bytes of an ingest are lost; it resumes before them");
        }
        self.ingest.touch();
    }
}

fn hold(file: &Mutex<IngestFile>) -> MutexGuard<'_, IngestFile> {
    file.lock().unwrap_or_else(|poisoned| {
        // A panic may have left file and digester apart.
        let mut file = PoisonError::into_inner(poisoned);
        file.broken = true;
        file
    })
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
