//! Blobs as files.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use gantry_core::Digest;
use gantry_errdefs::Result;

use crate::{Info, Reader, Status, Store, Writer, WriterOptions};

/// A [`Store`] of files under one directory, in containerd's layout. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LocalStore {
    root: Arc<PathBuf>,
}

impl LocalStore {
    /// Opens the store at `root`, which is made if missing.
    ///
    /// # Errors
    /// The I/O error with its path.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        Ok(Self { root: Arc::new(root.into()) })
    }
}

#[async_trait]
impl Store for LocalStore {
    async fn info(&self, digest: &Digest) -> Result<Info> {
        let _ = (&self.root, digest);
        todo!()
    }

    async fn reader(&self, _digest: &Digest) -> Result<Box<dyn Reader>> {
        todo!()
    }

    async fn delete(&self, _digest: &Digest) -> Result<()> {
        todo!()
    }

    async fn walk(&self, _visit: &mut (dyn FnMut(Info) -> Result<()> + Send)) -> Result<()> {
        todo!()
    }

    async fn writer(&self, _options: WriterOptions) -> Result<Box<dyn Writer>> {
        todo!()
    }

    async fn status(&self, _reference: &str) -> Result<Status> {
        todo!()
    }

    async fn statuses(&self) -> Result<Vec<Status>> {
        todo!()
    }

    async fn abort(&self, _reference: &str) -> Result<()> {
        todo!()
    }
}
