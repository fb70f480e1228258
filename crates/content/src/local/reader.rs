//! Blobs open for reading.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{IoSliceMut, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use gantry_errdefs::{Result, ResultExt as _};
use rustix::io::ReadWriteFlags;

use super::blocking;
use crate::Reader;

/// Largest piece that is read where one stands if the kernel has it in memory: copying that takes no
/// longer than having another thread do it.
const AT_ONCE_LEN_MAX: usize = 256 << 10;

/// Smallest piece whose memory is used again.
const KEPT_LEN_MIN: usize = 64 << 10;

/// Bytes of pieces that are kept for that while the blob is open.
const KEPT_LEN_MAX: usize = 2 << 20;

/// A blob file.
#[derive(Debug)]
pub(super) struct FileReader {
    file: Arc<File>,
    size: u64,
    pieces: Pieces,
}

impl FileReader {
    pub(super) fn open(file: File) -> Result<Self> {
        let size = file.metadata().context(|| "blob")?.len();
        Ok(Self { file: Arc::new(file), size, pieces: Pieces::default() })
    }
}

/// All of a blob, unless that is more than `len_max`. Blocks. `buf` is where it is read to first: one
/// that is shorter than that is known to be whole without asking for its size.
pub(super) fn whole(file: File, buf: &mut [u8], len_max: u64) -> Result<Option<Bytes>> {
    let len = file.read_at(buf, 0).context(|| "read blob")?;
    if len < buf.len() {
        return Ok((len as u64 <= len_max).then(|| Bytes::copy_from_slice(&buf[..len])));
    }
    let FileReader { file, size, .. } = FileReader::open(file)?;
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
        let mut buf = self.pieces.buffer(len);
        let had = if len <= AT_ONCE_LEN_MAX { cached(&self.file, &mut buf, offset) } else { 0 };
        if had < len {
            let file = Arc::clone(&self.file);
            buf = blocking(move || {
                let rest = file.read_exact_at(&mut buf[had..], offset + had as u64);
                rest.context(|| "read blob").map(|()| buf)
            })
            .await?;
        }
        let piece = buf.freeze();
        self.pieces.keep(&piece);
        Ok(piece)
    }

    fn into_blocking(self: Box<Self>) -> Box<dyn Read + Send> {
        Box::new(Sequential { file: self.file, offset: 0 })
    }
}

/// What the kernel has in memory of `buf.len()` bytes at `offset`, as far as it goes without a gap.
fn cached(file: &File, buf: &mut [u8], offset: u64) -> usize {
    let mut bufs = [IoSliceMut::new(buf)];
    // Not every filesystem can; then there is just nothing at once.
    rustix::io::preadv2(file, &mut bufs, offset, ReadWriteFlags::NOWAIT).unwrap_or(0)
}

/// The last pieces that were read. Whoever reads a blob to its end has let go of them a few pieces
/// later, and fresh memory for each costs more than reading from the page cache does.
#[derive(Debug, Default)]
struct Pieces(Mutex<VecDeque<Bytes>>);

impl Pieces {
    /// Memory for `len` bytes: that of the oldest piece, if nobody has it any more.
    fn buffer(&self, len: usize) -> BytesMut {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let free = kept.front().is_some_and(Bytes::is_unique);
        let oldest = if free { kept.pop_front() } else { None };
        drop(kept);
        let Some(Ok(mut buf)) = oldest.map(Bytes::try_into_mut) else {
            return BytesMut::zeroed(len);
        };
        buf.resize(len, 0);
        buf
    }

    /// Keeps `piece` for later.
    fn keep(&self, piece: &Bytes) {
        if !(KEPT_LEN_MIN..=KEPT_LEN_MAX).contains(&piece.len()) {
            return;
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back(piece.clone());
        let mut len: usize = kept.iter().map(Bytes::len).sum();
        while len > KEPT_LEN_MAX {
            len -= kept.pop_front().map_or(len, |oldest| oldest.len());
        }
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
