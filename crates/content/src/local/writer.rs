//! Ingests open for writing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use gantry_core::{Algorithm, Digest};
use gantry_errdefs::{Error, Result};

use super::active::RefLock;
use super::ingest_file::IngestFile;
use super::{Shared, blocking};
use crate::{Status, Writer, WriterOptions};

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
        let algorithm = options.expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let (file, total, started_at, updated_at) = match ingest.open(&reference)? {
            None => {
                let since = lock.since();
                (IngestFile::fresh(lock, ingest, algorithm, options.total), 0, since, since)
            }
            Some(file) => {
                let status = ingest.status()?.ok_or_else(|| {
                    Error::not_found(format!("ingest ref {reference:?}: aborted"))
                })?;
                if options.total > 0 && status.total > 0 && options.total != status.total {
                    return Err(Error::failed_precondition(format!(
                        "ref {reference}: total {} differs from the {} the ingest was opened with",
                        options.total, status.total
                    )));
                }
                let file = IngestFile::stored(lock, ingest, file, algorithm)?;
                (file, status.total, status.started_at, status.updated_at)
            }
        };
        let total = options.total.max(total);
        file.lock.set_total(total);
        if let Some(expected) = options.expected {
            file.lock.set_expected(expected);
        }
        Ok(Self {
            shared: Arc::clone(shared),
            total,
            started_at,
            updated_at,
            file: Arc::new(Mutex::new(file)),
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
        if self.file().gather(&data)? {
            return Ok(());
        }
        self.run(move |file| file.append(&data)).await
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
        self.file().digest()
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

    async fn commit_deferred(
        self: Box<Self>,
        size: u64,
        expected: Option<&Digest>,
    ) -> Result<(Digest, Option<Bytes>)> {
        let expected = expected.cloned().or_else(|| self.file().lock.expected());
        let shared = Arc::clone(&self.shared);
        self.run(move |file| file.commit_deferred(&shared, size, expected)).await
    }
}

fn hold(file: &Mutex<IngestFile>) -> MutexGuard<'_, IngestFile> {
    file.lock().unwrap_or_else(|poisoned| {
        // A panic may have left file and digester apart.
        let mut file = PoisonError::into_inner(poisoned);
        file.break_off();
        file
    })
}
