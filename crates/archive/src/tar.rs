//! Plain tar streams whose files are not unpacked: image archives.

mod walk;

use std::io::{BufReader, Read};

use gantry_errdefs::Result;
use tar_core::EntryType;
use tar_core::builder::EntryBuilder;

use crate::Limits;
use crate::entry::{Archive, Kind};

pub use walk::{Found, Links, walk};

/// Bytes of one tar block.
const BLOCK_BYTES: u64 = 512;

/// Bytes read from a stream at once.
const BUFFER_BYTES: usize = 256 << 10;

/// What ends an archive.
pub const END: [u8; 2 * BLOCK_BYTES as usize] = [0; 2 * BLOCK_BYTES as usize];

/// One entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The name as it stands in the archive; what is not UTF-8 is replaced.
    pub name: String,
    /// What it is.
    pub kind: MemberKind,
    /// Bytes of content.
    pub size: u64,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// A regular file without holes.
    File,
    /// A directory.
    Dir,
    /// A symlink to this path.
    Symlink(String),
    /// A hard link to this member.
    Hardlink(String),
    /// Anything else.
    Other,
}

/// Reads the members of a plain tar stream, one after the other.
pub struct Members<R>(Archive<BufReader<R>>);

impl<R: Read> Members<R> {
    /// Members of `reader`, which is read in large pieces.
    pub fn new(reader: R, limits: Limits) -> Self {
        Self(Archive::new(BufReader::with_capacity(BUFFER_BYTES, reader), limits))
    }

    /// The next member; content of the one before that was not read is skipped.
    ///
    /// # Errors
    /// InvalidArgument for a bad archive, else the stream's.
    #[expect(clippy::should_implement_trait, reason = "lends; and fails")]
    pub fn next(&mut self) -> Result<Option<Member>> {
        let Some(entry) = self.0.next()? else { return Ok(None) };
        let link = || String::from_utf8_lossy(&entry.link).into_owned();
        let kind = match entry.kind {
            Kind::File if entry.sparse.is_none() => MemberKind::File,
            Kind::Dir => MemberKind::Dir,
            Kind::Symlink => MemberKind::Symlink(link()),
            Kind::Hardlink => MemberKind::Hardlink(link()),
            _ => MemberKind::Other,
        };
        let name = String::from_utf8_lossy(&entry.path).into_owned();
        Ok(Some(Member { name, kind, size: entry.size }))
    }

    /// Hands the whole content of the current member to `sink`, piece by piece.
    ///
    /// # Errors
    /// InvalidArgument when the archive ends before; those of `sink` and the stream.
    pub fn content(&mut self, sink: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.0.rest(sink)
    }
}

/// The header of a regular file of `size` bytes, read-only, root's, of 1970: nothing in it
/// depends on when or where it is written.
pub fn file_header(name: &str, size: u64) -> Vec<u8> {
    header(name, EntryType::Regular, 0o444, size)
}

/// The header of a directory.
pub fn dir_header(name: &str) -> Vec<u8> {
    header(&format!("{}/", name.trim_end_matches('/')), EntryType::Directory, 0o755, 0)
}

/// What follows `size` bytes of content.
pub fn padding(size: u64) -> &'static [u8] {
    let len = (BLOCK_BYTES - size % BLOCK_BYTES) % BLOCK_BYTES;
    &END[..usize::try_from(len).unwrap_or(0)]
}

fn header(name: &str, kind: EntryType, mode: u32, size: u64) -> Vec<u8> {
    let mut header = EntryBuilder::new_ustar();
    header.path(name).entry_type(kind);
    // Mode and ids fit, and a size that does not goes into a PAX record.
    let _fits = header.mode(mode).and_then(|h| h.uid(0)).and_then(|h| h.gid(0)).map(drop);
    let _fits = header.mtime(0).and_then(|h| h.size(size)).map(drop);
    header.finish_bytes()
}
