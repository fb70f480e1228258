//! Reading entries: the tar parser, its limits, and what PAX records add.
//!
//! `tar-core` finds headers, long names and sparse maps. Where it is laxer or coarser than what a
//! layer needs (numbers that do not parse, times before 1970 or with nanoseconds, records cut
//! short) the PAX records are read again here, strictly.

mod pax;

use std::io::BufRead;

use gantry_errdefs::{Error, Result};
use rustix::fs::Timespec;
use tar_core::EntryType;
use tar_core::parse::{ParseEvent, ParsedEntry, Parser};

use crate::limits::{HEADERS_BYTES_MAX, Limits, PATH_LEN_MAX};
use crate::pipe::stream_error;

/// Bytes read beyond what the parser asked for, where it asks again: it starts afresh each time.
const AHEAD_BYTES: usize = 4 << 10;

/// Bytes of one tar block.
const BLOCK_BYTES: u64 = 512;

/// What kind of inode an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file.
    File,
    /// Another name of a file of this or a lower layer.
    Hardlink,
    /// A symlink.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A directory.
    Dir,
    /// A named pipe.
    Fifo,
}

/// Where the data of a sparse file belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sparse {
    /// Offset and length of each region of data, ascending and apart.
    pub(crate) map: Vec<(u64, u64)>,
    /// The size of the file with its holes.
    pub(crate) size: u64,
}

/// One entry, with every extension applied.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The name as it stands in the archive.
    pub(crate) path: Vec<u8>,
    /// What it is.
    pub(crate) kind: Kind,
    /// Permission bits, setuid and sticky included.
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Time of modification.
    pub(crate) mtime: Timespec,
    /// Target of a symlink or hard link.
    pub(crate) link: Vec<u8>,
    /// Device number, major and minor.
    pub(crate) device: (u32, u32),
    /// Extended attributes, full names.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of content on the stream.
    pub(crate) size: u64,
    /// The sparse map, if the file has holes.
    pub(crate) sparse: Option<Sparse>,
}

impl Entry {
    /// An InvalidArgument error that names this entry.
    pub(crate) fn bad(&self, why: impl std::fmt::Display) -> Error {
        bad_entry(&self.path, why)
    }

    /// Bytes the file will show.
    pub(crate) fn file_size(&self) -> u64 {
        self.sparse.as_ref().map_or(self.size, |s| s.size)
    }
}

/// Bytes of a name an error shows.
const SHOWN_NAME_LEN: usize = 256;

/// An InvalidArgument error that names an entry, cut to a readable length.
pub(crate) fn bad_entry(path: &[u8], why: impl std::fmt::Display) -> Error {
    let shown = String::from_utf8_lossy(&path[..path.len().min(SHOWN_NAME_LEN)]);
    Error::invalid_argument(format!("layer entry {shown:?}: {why}"))
}

/// Walks the entries of a plain tar stream. Content is handed on from where the stream buffers it;
/// headers are gathered here.
pub(crate) struct Archive<R> {
    reader: R,
    /// Read for the parser and not taken yet: from `start` on.
    buf: Vec<u8>,
    start: usize,
    parser: Parser,
    limits: Limits,
    /// Bytes of the current entry not read yet: content, then padding.
    content_left: u64,
    padding: u64,
    /// Position in the stream of the next unread byte, for messages.
    position: u64,
    count: u64,
    /// The last entry handed out, for messages about what follows it.
    last: Vec<u8>,
}

impl<R: BufRead> Archive<R> {
    /// An archive that has read nothing yet.
    pub(crate) fn new(reader: R, limits: Limits) -> Self {
        let mut parser = Parser::new(tar_core::parse::Limits {
            max_metadata_size: limits.metadata_bytes_max,
            max_path_len: Some(PATH_LEN_MAX as u32),
            max_pending_entries: 16,
            max_sparse_entries: limits.sparse_count_max,
        });
        // Strictness about PAX values is ours, see `pax`.
        parser.set_ignore_pax_errors(true);
        // Some writers name the root so; it is passed by like other names of it.
        parser.set_allow_empty_path(true);
        Self {
            reader,
            buf: Vec::new(),
            start: 0,
            parser,
            limits,
            content_left: 0,
            padding: 0,
            position: 0,
            count: 0,
            last: Vec::new(),
        }
    }

    /// The next entry; content of the one before that was not read is skipped.
    ///
    /// # Errors
    /// InvalidArgument for a bad archive, else the stream's.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        self.skip()?;
        loop {
            let (consumed, entry) = match self.parse()? {
                Parsed::More(min) => {
                    if !self.fill(min)? {
                        return self.at_end();
                    }
                    continue;
                }
                Parsed::End => return Ok(None),
                Parsed::Skip(consumed) => (consumed, None),
                Parsed::Entry(consumed, entry) => (consumed, Some(*entry)),
            };
            self.take(consumed);
            self.count += 1;
            if self.count > self.limits.entry_count_max {
                let max = self.limits.entry_count_max;
                return Err(Error::invalid_argument(format!("archive has over {max} entries")));
            }
            let Some(entry) = entry else { continue };
            self.content_left = entry.size;
            self.padding = (BLOCK_BYTES - entry.size % BLOCK_BYTES) % BLOCK_BYTES;
            self.last.clone_from(&entry.path);
            return Ok(Some(entry));
        }
    }

    /// Hands the next `len` bytes of the current entry's content to `sink`, piece by piece.
    ///
    /// # Errors
    /// InvalidArgument when the entry or the stream holds fewer; those of `sink` and the stream.
    pub(crate) fn content(
        &mut self,
        mut len: u64,
        mut sink: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        if len > self.content_left {
            return Err(bad_entry(&self.last, "has less content than its map says"));
        }
        self.content_left -= len;
        while len > 0 {
            let piece = self.piece(len)?;
            if piece.is_empty() {
                return Err(bad_entry(&self.last, "archive ends inside its content"));
            }
            sink(piece)?;
            let taken = piece.len();
            self.take(taken);
            len -= taken as u64;
        }
        Ok(())
    }

    /// Hands all content that is left of the current entry to `sink`.
    ///
    /// # Errors
    /// As [`Self::content`].
    pub(crate) fn rest(&mut self, sink: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.content(self.content_left, sink)
    }

    /// The archive stops without its end marker: fine between entries, as other tools see it.
    fn at_end(&self) -> Result<Option<Entry>> {
        let rest = &self.buf[self.start..];
        if rest.is_empty() || (rest.len() as u64 == BLOCK_BYTES && rest.iter().all(|b| *b == 0)) {
            return Ok(None);
        }
        Err(self.bad("archive ends too early"))
    }

    fn bad(&self, why: impl std::fmt::Display) -> Error {
        let at = self.position;
        if self.last.is_empty() {
            return Error::invalid_argument(format!("archive at byte {at}: {why}"));
        }
        let after = format!("archive at byte {at}, past this entry: {why}");
        bad_entry(&self.last, after)
    }

    fn parse(&mut self) -> Result<Parsed> {
        let (consumed, entry, sparse) = match self.parser.parse(&self.buf[self.start..]) {
            Ok(ParseEvent::NeedData { min_bytes }) => return Ok(Parsed::More(min_bytes)),
            Ok(ParseEvent::End { .. }) => return Ok(Parsed::End),
            // Global records set defaults for what follows; layers carry none that matter (git
            // archives leave a commit id here), and containerd passes them by.
            Ok(ParseEvent::GlobalExtensions { consumed, .. }) => return Ok(Parsed::Skip(consumed)),
            Ok(ParseEvent::Entry { consumed, entry }) => (consumed, entry, None),
            Ok(ParseEvent::SparseEntry { consumed, entry, sparse_map, real_size }) => {
                let map = sparse_map.iter().map(|e| (e.offset, e.length)).collect();
                (consumed, entry, Some(Sparse { map, size: real_size }))
            }
            Err(err) => return Err(self.bad(err)),
        };
        let map_bytes = (consumed as u64).saturating_sub(BLOCK_BYTES);
        let converted = convert(&entry, sparse, map_bytes, &self.limits)
            .map_err(|why| bad_entry(&entry.path, why))?;
        Ok(Parsed::Entry(consumed, Box::new(converted)))
    }

    /// Buffers at least `min` bytes; false when the stream ends before that.
    fn fill(&mut self, min: usize) -> Result<bool> {
        if min > HEADERS_BYTES_MAX {
            return Err(self.bad(format!("headers of one entry need {min} bytes")));
        }
        let again = self.start < self.buf.len();
        self.buf.drain(..self.start);
        self.start = 0;
        // Doubling keeps the parser's fresh starts few.
        let want = if again { min.next_power_of_two().max(AHEAD_BYTES) } else { min };
        while self.buf.len() < min {
            let chunk = chunk(&mut self.reader)?;
            if chunk.is_empty() {
                return Ok(false);
            }
            let len = chunk.len().min(want - self.buf.len());
            self.buf.extend_from_slice(&chunk[..len]);
            self.reader.consume(len);
        }
        Ok(true)
    }

    /// Some of the next `want` bytes, still to be taken; none at the end of the stream.
    fn piece(&mut self, want: u64) -> Result<&[u8]> {
        let buffered = &self.buf[self.start..];
        let bytes = if buffered.is_empty() { chunk(&mut self.reader)? } else { buffered };
        Ok(&bytes[..usize::try_from(want).map_or(bytes.len(), |want| want.min(bytes.len()))])
    }

    /// Passes by what is left of the current entry. Its content must be there; the zeros that
    /// fill its last block may be missing at the end of the archive, as umoci leaves them out.
    fn skip(&mut self) -> Result<()> {
        self.rest(|_| Ok(()))?;
        while self.padding > 0 {
            let piece = self.piece(self.padding)?.len();
            if piece == 0 {
                break;
            }
            self.take(piece);
            self.padding -= piece as u64;
        }
        self.padding = 0;
        Ok(())
    }

    /// Moves on by `len` bytes of what was buffered, here or by the stream.
    fn take(&mut self, len: usize) {
        if self.start < self.buf.len() {
            self.start += len;
        } else {
            self.reader.consume(len);
        }
        self.position += len as u64;
    }
}

/// What the stream has buffered; something unless it has ended.
fn chunk(reader: &mut impl BufRead) -> Result<&[u8]> {
    while let Err(err) = reader.fill_buf() {
        if err.kind() != std::io::ErrorKind::Interrupted {
            return Err(stream_error(err));
        }
    }
    reader.fill_buf().map_err(stream_error)
}

/// One step of the parser, free of borrows.
enum Parsed {
    More(usize),
    End,
    Skip(usize),
    Entry(usize, Box<Entry>),
}

fn convert(
    parsed: &ParsedEntry<'_>,
    sparse: Option<Sparse>,
    map_bytes: u64,
    limits: &Limits,
) -> Result<Entry, String> {
    let path = parsed.path.to_vec();
    let kind = kind_of(parsed.entry_type, &path, parsed.size)
        .ok_or_else(|| format!("entry type {:?} is unknown", parsed.entry_type))?;
    let pax = parsed.pax.map(pax::read).transpose()?.unwrap_or_default();
    let mut size = parsed.size;
    if sparse.is_some() && pax.size.is_some() && parsed.entry_type != EntryType::GnuSparse {
        // The record counts the map as well, which is consumed with the headers.
        size = size.checked_sub(map_bytes).ok_or("sparse map larger than its entry")?;
    }
    if !matches!(kind, Kind::File) {
        // Whatever the header says, these have no content; so says Go, which most layers are
        // written and read with.
        size = 0;
    }
    if pax.xattrs.len() > limits.xattr_count_max {
        return Err(format!("more than {} extended attributes", limits.xattr_count_max));
    }
    let entry = Entry {
        kind,
        mode: parsed.mode & 0o7777,
        uid: id("uid", parsed.uid)?,
        gid: id("gid", parsed.gid)?,
        mtime: pax.mtime.unwrap_or(Timespec { tv_sec: parsed.mtime.cast_signed(), tv_nsec: 0 }),
        link: parsed.link_target.as_deref().unwrap_or_default().to_vec(),
        device: (parsed.dev_major.unwrap_or(0), parsed.dev_minor.unwrap_or(0)),
        xattrs: pax.xattrs,
        size,
        sparse: sparse.map(|s| checked_sparse(s, size)).transpose()?,
        path,
    };
    if entry.path.contains(&0) || entry.link.contains(&0) {
        return Err("a name holds a NUL".to_owned());
    }
    if entry.file_size() > limits.file_bytes_max {
        return Err(format!(
            "file of {} bytes is over the limit of {} bytes",
            entry.file_size(),
            limits.file_bytes_max
        ));
    }
    Ok(entry)
}

fn kind_of(entry_type: EntryType, path: &[u8], size: u64) -> Option<Kind> {
    Some(match entry_type {
        // Archives older than the directory type mark one with a slash.
        EntryType::Regular if path.ends_with(b"/") && size == 0 => Kind::Dir,
        EntryType::Regular | EntryType::Continuous | EntryType::GnuSparse => Kind::File,
        EntryType::Link => Kind::Hardlink,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Char => Kind::Char,
        EntryType::Block => Kind::Block,
        EntryType::Directory => Kind::Dir,
        EntryType::Fifo => Kind::Fifo,
        _ => return None,
    })
}

/// A user or group id; the largest value means "leave as it is" to chown and is no id.
fn id(what: &str, value: u64) -> Result<u32, String> {
    u32::try_from(value)
        .ok()
        .filter(|v| *v != u32::MAX)
        .ok_or_else(|| format!("{what} {value} is out of range"))
}

fn checked_sparse(sparse: Sparse, content: u64) -> Result<Sparse, String> {
    let mut at = 0u64;
    let mut sum = 0u64;
    for (offset, length) in &sparse.map {
        let end = offset.checked_add(*length).ok_or("sparse map overflows")?;
        if *offset < at || end > sparse.size {
            return Err("sparse map is out of order or past the end of the file".to_owned());
        }
        at = end;
        sum = sum.checked_add(*length).ok_or("sparse map overflows")?;
    }
    if sum == content {
        Ok(sparse)
    } else {
        Err(format!("sparse map covers {sum} bytes, the entry holds {content}"))
    }
}

#[cfg(test)]
mod tests;
