//! Making file-system changes survive a power cut.
//!
//! A file is durable when its data was synced *and* the directory that names it was synced after
//! the name was made. These helpers keep the two together.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Reads a small file, `None` when it does not exist.
///
/// # Errors
/// The I/O error other than NotFound.
pub fn read_optional(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(data) => Ok(Some(data)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Syncs the directory `dir`, so that names made or removed in it are durable.
///
/// # Errors
/// The I/O error.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Renames `from` to `to` and syncs the directory of `to`; that of `from` as well when it is
/// another one.
///
/// # Errors
/// The I/O error; after an error of the sync the rename may or may not survive a power cut.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    let to_dir = parent(to);
    sync_dir(to_dir)?;
    let from_dir = parent(from);
    if from_dir != to_dir {
        sync_dir(from_dir)?;
    }
    Ok(())
}

/// Writes `data` to `path` so that after a crash either the old or the new content is there,
/// whole: a temporary sibling is written, synced and renamed over it.
///
/// # Errors
/// The I/O error; the old content is then untouched, unless only the last sync failed.
pub fn write_atomic(path: &Path, data: &[u8], mode: u32) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let temp = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), unique()));
    let result = (|| {
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temp)?;
        file.write_all(data)?;
        file.sync_all()?;
        fs::rename(&temp, path)?;
        sync_dir(parent(path))
    })();
    if result.is_err() {
        // Gone already when only the last sync failed.
        let _ = fs::remove_file(&temp);
    }
    result
}

/// Syncs the whole filesystem that holds `path`: everything written to it before the call is
/// durable after.
///
/// # Errors
/// The I/O error.
pub fn sync_filesystem(path: &Path) -> io::Result<()> {
    rustix::fs::syncfs(File::open(path)?)?;
    Ok(())
}

/// Asks the kernel to start writing the bytes `offset..offset + len` of `file` to disk (up to its end
/// for a `len` of 0), without waiting and without any promise: the `fsync` that follows later has less left to do.
pub fn start_writeback(file: &File, offset: u64, len: u64) {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else { return };
    // SAFETY: the call takes numbers only; the descriptor is open for as long as `file` lives. A
    // failure costs nothing but the head start.
    unsafe {
        libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE);
    }
}

/// Has the kernel put a long file on disk while it is still being written, so that the sync at its
/// end has little left to do.
#[derive(Debug, Default)]
pub struct Writeback {
    /// Up to where that was asked for, or is left to the sync.
    begun: u64,
}

impl Writeback {
    /// Bytes written between two times the kernel is asked.
    const BYTES: u64 = 8 << 20;

    /// For a file whose first `begun` bytes are left to the sync.
    pub fn after(begun: u64) -> Self {
        Self { begun }
    }

    /// `file` has been written up to `end`, without a gap.
    pub fn wrote(&mut self, file: &File, end: u64) {
        if end - self.begun >= Self::BYTES {
            self.start(file, end);
        }
    }

    /// Starts with all up to `end`, however little.
    pub fn start(&mut self, file: &File, end: u64) {
        if end > self.begun {
            start_writeback(file, self.begun, end - self.begun);
            self.begun = end;
        }
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// A text no other call of this process returns, and hardly one of another.
fn unique() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
