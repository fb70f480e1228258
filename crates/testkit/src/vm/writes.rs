//! The log that QEMU's `blklogwrites` keeps of a disk, in the kernel's dm-log-writes format, and
//! the images a power cut could have left.
//!
//! # Format
//! All numbers are little endian; everything is aligned to the log's sector size.
//! ```text
//! sector 0:   magic u64, version u64 (1), number of entries u64, sector size u32
//! then, per entry:
//!   1 sector: first sector u64, number of sectors u64, flags u64, length of the mark u64
//!   data:     as many sectors as the entry says; none for a discard
//! ```
//!
//! # What a power cut leaves
//! The log has the order in which the machine asked for writes. What was asked for before a flush
//! is on the disk when the flush is done; of what came after the last flush any part may be, in
//! any order and torn between sectors. [`Cut`] names one such image.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// First word of a log.
const MAGIC: u64 = 0x006a_7366_7773_6872;

/// The only version there is.
const VERSION: u64 = 1;

/// Bytes of an entry's head that mean something.
const HEAD_BYTES: usize = 32;

/// The text that a machine writes to the disk's mark sector begins with this.
pub(super) const MARK_PREFIX: &str = "gantry-mark ";

const FLUSH: u64 = 1;
const FUA: u64 = 1 << 1;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;

/// Every write a machine made to its disk, in order.
#[derive(Debug)]
pub struct WriteLog {
    file: File,
    sector_bytes: u64,
    entries: Vec<Entry>,
}

/// One request to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    sector: u64,
    sectors: u64,
    flags: u64,
    /// Where its data begins in the log.
    data_at: u64,
}

/// A moment at which the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The first so many entries of the log were asked for.
    pub entries: usize,
    /// What became of those that no flush followed.
    pub unflushed: Unflushed,
}

/// What became of writes that no flush followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unflushed {
    /// All of them are on the disk.
    Kept,
    /// None of them is.
    Lost,
    /// About half of them are, some torn after a random sector, chosen by this seed.
    Some(u64),
}

impl WriteLog {
    /// Reads the heads of a log's entries.
    ///
    /// # Errors
    /// The I/O error; `InvalidData` for something that is no log.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let mut head = [0; HEAD_BYTES];
        file.read_exact_at(&mut head, 0)?;
        let sector_bytes = word(&head, 3) & u64::from(u32::MAX);
        if word(&head, 0) != MAGIC || word(&head, 1) != VERSION || sector_bytes < 512 {
            return Err(invalid("no log of writes"));
        }
        let mut entries = Vec::new();
        let mut at = sector_bytes;
        for _ in 0..word(&head, 2) {
            file.read_exact_at(&mut head, at)?;
            let (sector, sectors, flags) = (word(&head, 0), word(&head, 1), word(&head, 2));
            let data_at = at + sector_bytes;
            entries.push(Entry { sector, sectors, flags, data_at });
            let data_bytes = match flags & (DISCARD | MARK) {
                0 => sectors.checked_mul(sector_bytes),
                DISCARD => Some(0),
                _ => word(&head, 3).checked_next_multiple_of(sector_bytes),
            };
            at = data_bytes
                .and_then(|bytes| data_at.checked_add(bytes))
                .ok_or_else(|| invalid("an entry of the log is impossibly long"))?;
        }
        Ok(Self { file, sector_bytes, entries })
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Number of flushes.
    pub fn flushes(&self) -> usize {
        self.entries.iter().filter(|e| e.flags & FLUSH != 0).count()
    }

    /// The marks the machine set, in order: how many entries there are up to and with the mark,
    /// and its text.
    ///
    /// # Errors
    /// The I/O error.
    pub fn marks(&self) -> io::Result<Vec<(usize, String)>> {
        let mut marks = Vec::new();
        for (index, entry) in self.entries.iter().enumerate() {
            if entry.sectors != 1 || entry.flags & (DISCARD | MARK) != 0 {
                continue;
            }
            let data = self.data(entry)?;
            if let Some(text) = data.strip_prefix(MARK_PREFIX.as_bytes()) {
                let text = String::from_utf8_lossy(text);
                marks.push((index + 1, text.trim_end_matches('\0').to_owned()));
            }
        }
        Ok(marks)
    }

    /// Makes the image `to` that `cut` leaves of a disk that was `base` before its first write.
    ///
    /// # Errors
    /// The I/O error.
    pub fn replay(&self, cut: Cut, base: &Path, to: &Path) -> io::Result<()> {
        copy_sparse(base, to)?;
        let disk = fs::OpenOptions::new().write(true).open(to)?;
        let entries = &self.entries[..cut.entries];
        let flushed = entries.iter().rposition(|e| e.flags & FLUSH != 0).unwrap_or(0);
        for entry in &entries[..flushed] {
            self.apply(entry, entry.sectors, &disk)?;
        }
        let mut random = match cut.unflushed {
            Unflushed::Some(seed) => fastrand::Rng::with_seed(seed),
            Unflushed::Kept | Unflushed::Lost => fastrand::Rng::with_seed(0),
        };
        // A write that carries the flush flag comes after the flush.
        for entry in &entries[flushed..] {
            let sectors = match cut.unflushed {
                _ if entry.flags & FUA != 0 => entry.sectors,
                Unflushed::Kept => entry.sectors,
                Unflushed::Lost => 0,
                Unflushed::Some(_) => match random.u8(0..8) {
                    0..4 => 0,
                    4 => random.u64(0..=entry.sectors),
                    _ => entry.sectors,
                },
            };
            self.apply(entry, sectors, &disk)?;
        }
        Ok(())
    }

    /// Writes the first `sectors` of an entry.
    fn apply(&self, entry: &Entry, sectors: u64, disk: &File) -> io::Result<()> {
        if sectors == 0 || entry.flags & MARK != 0 {
            return Ok(());
        }
        let mut data = self.data(&Entry { sectors, ..*entry })?;
        if entry.flags & DISCARD != 0 {
            data.fill(0);
        }
        disk.write_all_at(&data, entry.sector * self.sector_bytes)
    }

    fn data(&self, entry: &Entry) -> io::Result<Vec<u8>> {
        let bytes = usize::try_from(entry.sectors * self.sector_bytes).map_err(invalid)?;
        let mut data = vec![0; bytes];
        if entry.flags & DISCARD == 0 {
            self.file.read_exact_at(&mut data, entry.data_at)?;
        }
        Ok(data)
    }
}

/// Copies an image; parts that were never written stay holes.
pub(super) fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    let done = std::process::Command::new("cp").arg("--sparse=always").args([from, to]).status()?;
    if done.success() { Ok(()) } else { Err(io::Error::other(format!("cp {}", from.display()))) }
}

fn word(head: &[u8; HEAD_BYTES], n: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&head[8 * n..8 * n + 8]);
    u64::from_le_bytes(word)
}

fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests;
