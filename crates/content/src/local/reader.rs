//! Blobs open for reading.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use gantry_errdefs::{Result, ResultExt as _};

use super::blocking;
use crate::Reader;

/// A blob file.
#[derive(Debug)]
pub(super) struct FileReader {
    file: Arc<File>,
    size: u64,
}

impl FileReader {
    pub(super) fn open(file: File) -> Result<Self> {
        let size = file.metadata().context(|| "blob")?.len();
        Ok(Self { file: Arc::new(file), size })
    }
}

/// All of a blob, unless that is more than `len_max`. Blocks. `buf` is where it is read to first: one
/// that is shorter than that is known to be whole without asking for its size.
pub(super) fn whole(file: File, buf: &mut [u8], len_max: u64) -> Result<Option<Bytes>> {
    let len = file.read_at(buf, 0).context(|| "read blob")?;
    if len < buf.len() {
        return Ok((len as u64 <= len_max).then(|| Bytes::copy_from_slice(&buf[..len])));
    }
    let FileReader { file, size } = FileReader::open(file)?;
    if size > len_max {
        return Ok(None);
    }
    let mut all = vec![0; usize::try_from(size).unwrap_or(0)];
    file.read_exact_at(&mut all, 0).context(|| "read blob")?;
    Ok(Some(all.into()))
}

#[async_trait]
impl Reader for FileReader {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = len.min(left);
        if len == 0 {
            return Ok(Bytes::new());
        }
        let file = Arc::clone(&self.file);
        blocking(move || {
            let mut buf = vec![0; len];
            file.read_exact_at(&mut buf, offset).context(|| "read blob")?;
            Ok(buf.into())
        })
        .await
    }

    fn into_blocking(self: Box<Self>) -> Box<dyn Read + Send> {
        Box::new(Sequential { file: self.file, offset: 0 })
    }
}

/// Reads from the start whatever the descriptor's own position is.
struct Sequential {
    file: Arc<File>,
    offset: u64,
}

impl Read for Sequential {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read_at(buf, self.offset)?;
        self.offset += n as u64;
        Ok(n)
    }
}
