//! Writing what changed as a tar stream.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use gantry_core::{Algorithm, Digest, Digester};
use gantry_errdefs::{Error, Result, ResultExt};
use rustix::fs::{FileType, Stat, Timespec};
use tar_core::EntryType;
use tar_core::builder::EntryBuilder;

use super::scan::{Change, Tree, What, bytes, file_type};
use super::{DiffOptions, Diffed};
use crate::compression::Compressor;
use crate::{WHITEOUT_OPAQUE, WHITEOUT_PREFIX, attrs};

/// Bytes of one tar block.
const BLOCK_BYTES: u64 = 512;

/// Bytes read from a file at once.
const COPY_BYTES: usize = 128 << 10;

/// Largest time the eleven octal digits of a header hold, in seconds.
const HEADER_TIME_MAX: i64 = 0o77_777_777_777;

/// Writes the layer.
///
/// # Errors
/// See [`crate::diff()`].
pub(super) fn write(
    tree: &Tree,
    list: &[Change],
    writer: impl Write,
    options: &DiffOptions,
) -> Result<Diffed> {
    let failed = || "write the layer";
    let packed = Compressor::new(Hashing::new(writer), options.compression).context(failed)?;
    let mut layer = Layer { out: Hashing::new(packed), tree, options, buf: vec![0; COPY_BYTES] };
    for change in list {
        layer.change(change)?;
    }
    // Two empty blocks end an archive.
    layer.out.write_all(&[0; 2 * BLOCK_BYTES as usize]).context(failed)?;
    let (packed, diff_id, diff_size) = layer.out.finish();
    let mut blob = packed.finish().context(failed)?;
    blob.flush().context(failed)?;
    let (_, digest, size) = blob.finish();
    Ok(Diffed { diff_id, diff_size, digest, size, entries: list.len() as u64 })
}

struct Layer<'a, W: Write> {
    out: Hashing<W>,
    tree: &'a Tree,
    options: &'a DiffOptions,
    buf: Vec<u8>,
}

impl<W: Write> Layer<'_, W> {
    fn change(&mut self, change: &Change) -> Result<()> {
        let path = &change.path;
        match &change.what {
            What::Write(stat) => self.inode(path, stat),
            What::Link(to, stat) => {
                let mut header = self.header(path, bytes(path), stat, EntryType::Link)?;
                header.link_name(bytes(to));
                self.put(path, &mut header)
            }
            What::Delete => {
                let mut name = WHITEOUT_PREFIX.as_bytes().to_vec();
                name.extend_from_slice(path.file_name().unwrap_or_default().as_encoded_bytes());
                self.whiteout(path.parent().unwrap_or(Path::new("")), &name)
            }
            What::Opaque => self.whiteout(path, WHITEOUT_OPAQUE.as_bytes()),
            // Dropped or turned into a write before.
            What::Same(_) => Ok(()),
        }
    }

    fn inode(&mut self, path: &Path, stat: &Stat) -> Result<()> {
        let name = bytes(path);
        let kind = match file_type(stat) {
            FileType::Directory => {
                let slashed = [name, b"/"].concat();
                let mut header = self.header(path, &slashed, stat, EntryType::Directory)?;
                return self.put(path, &mut header);
            }
            FileType::RegularFile => return self.file(path, stat),
            FileType::Symlink => {
                let mut header = self.header(path, name, stat, EntryType::Symlink)?;
                header.link_name(self.tree.read_link(path)?);
                return self.put(path, &mut header);
            }
            FileType::CharacterDevice => EntryType::Char,
            FileType::BlockDevice => EntryType::Block,
            FileType::Fifo => EntryType::Fifo,
            other => {
                return Err(Error::internal(format!("{path:?} is of the kind {other:?}")));
            }
        };
        let mut header = self.header(path, name, stat, kind)?;
        if kind != EntryType::Fifo {
            let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
            header.device(major, minor).map_err(|e| unfit(path, e))?;
        }
        self.put(path, &mut header)
    }

    fn file(&mut self, path: &Path, stat: &Stat) -> Result<()> {
        let mut file = File::from(self.tree.open_read(path)?);
        // The size now, not when the tree was walked: the content must fit the header.
        let size = file.metadata().context(|| format!("look up {path:?}"))?.len();
        let mut header = self.header(path, bytes(path), stat, EntryType::Regular)?;
        header.size(size).map_err(|e| unfit(path, e))?;
        self.put(path, &mut header)?;
        let mut left = size;
        while left > 0 {
            let want = usize::try_from(left).map_or(COPY_BYTES, |l| l.min(COPY_BYTES));
            let len = match file.read(&mut self.buf[..want]) {
                Ok(0) => {
                    let why = format!("file {path:?} became shorter while it was read");
                    return Err(Error::aborted(why));
                }
                Ok(len) => len,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Error::io(format!("read {path:?}"), e)),
            };
            self.out.write_all(&self.buf[..len]).context(|| "write the layer")?;
            left -= len as u64;
        }
        let padding = (BLOCK_BYTES - size % BLOCK_BYTES) % BLOCK_BYTES;
        self.out
            .write_all(&[0; BLOCK_BYTES as usize][..padding as usize])
            .context(|| "write the layer")
    }

    fn whiteout(&mut self, dir: &Path, name: &[u8]) -> Result<()> {
        let path = dir.join(crate::view::os(name));
        let mut header = EntryBuilder::new_ustar();
        header.path(bytes(&path)).entry_type(EntryType::Regular);
        let time = self.options.source_date_epoch.unwrap_or(0);
        set_time(&mut header, Timespec { tv_sec: time, tv_nsec: 0 })
            .and_then(|()| header.mode(0).map(drop))
            .and_then(|()| header.uid(0).and_then(|h| h.gid(0)).and_then(|h| h.size(0)).map(drop))
            .map_err(|e| unfit(&path, e))?;
        self.put(&path, &mut header)
    }

    fn header(
        &self,
        path: &Path,
        name: &[u8],
        stat: &Stat,
        kind: EntryType,
    ) -> Result<EntryBuilder> {
        let mut header = EntryBuilder::new_ustar();
        header.path(name).entry_type(kind);
        let time = self.time(attrs::mtime(stat));
        header
            .mode(stat.st_mode & 0o7777)
            .and_then(|h| h.uid(u64::from(stat.st_uid)))
            .and_then(|h| h.gid(u64::from(stat.st_gid)))
            // Of a file it is set again. Readers that are strict refuse a number left blank.
            .and_then(|h| h.size(0))
            .map(drop)
            .and_then(|()| set_time(&mut header, time))
            .map_err(|e| unfit(path, e))?;
        if kind != EntryType::Link {
            for (key, value) in self.tree.xattrs(path)? {
                match std::str::from_utf8(&key) {
                    // A PAX record ends its key with the first equals sign.
                    Ok(key) if !key.contains('=') => {
                        header.add_pax(&format!("SCHILY.xattr.{key}"), &value);
                    }
                    _ => tracing::warn!(
                        path = %path.display(),
                        "extended attribute left out: tar cannot say its name"
                    ),
                }
            }
        }
        Ok(header)
    }

    /// The time written for a time found.
    fn time(&self, found: Timespec) -> Timespec {
        let mut time = found;
        if !self.options.precise_times {
            time.tv_nsec = 0;
        }
        match self.options.source_date_epoch {
            Some(latest) if (time.tv_sec, time.tv_nsec) > (latest, 0) => {
                Timespec { tv_sec: latest, tv_nsec: 0 }
            }
            _ => time,
        }
    }

    fn put(&mut self, path: &Path, header: &mut EntryBuilder) -> Result<()> {
        self.out
            .write_all(&header.finish_bytes())
            .context(|| format!("write the layer, entry {path:?}"))
    }
}

/// Sets the time in the header, and in a PAX record where the header cannot hold it.
fn set_time(
    header: &mut EntryBuilder,
    time: Timespec,
) -> std::result::Result<(), tar_core::HeaderError> {
    let whole = time.tv_nsec == 0 && (0..=HEADER_TIME_MAX).contains(&time.tv_sec);
    if whole {
        return header.mtime(time.tv_sec.cast_unsigned()).map(drop);
    }
    header.mtime(time.tv_sec.clamp(0, HEADER_TIME_MAX).cast_unsigned())?;
    header.add_pax("mtime", pax_time(time));
    Ok(())
}

/// A time as decimal seconds.
fn pax_time(time: Timespec) -> String {
    let (sign, seconds, nanos) = if time.tv_sec < 0 && time.tv_nsec > 0 {
        ("-", -(time.tv_sec + 1), 1_000_000_000 - time.tv_nsec)
    } else {
        ("", time.tv_sec, time.tv_nsec)
    };
    if nanos == 0 {
        return format!("{sign}{seconds}");
    }
    let fraction = format!("{nanos:09}");
    format!("{sign}{seconds}.{}", fraction.trim_end_matches('0'))
}

fn unfit(path: &Path, err: tar_core::HeaderError) -> Error {
    Error::invalid_argument(format!("{path:?} does not fit a tar header: {err}"))
}

/// Digests and counts what passes.
struct Hashing<W> {
    inner: W,
    digester: Digester,
    size: u64,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, digester: Digester::new(Algorithm::Sha256), size: 0 }
    }

    fn finish(self) -> (W, Digest, u64) {
        (self.inner, self.digester.finish(), self.size)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let len = self.inner.write(buf)?;
        self.digester.update(&buf[..len]);
        self.size += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
