//! Copying the data of a file: shared by reflink where the filesystem can, else with its holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
use rustix::io::Errno;

/// Bytes copied at once.
const COPY_BYTES: usize = 256 << 10;

/// Makes the empty file `to` hold what `from` holds, holes included.
///
/// # Errors
/// The I/O error; what was copied so far stays.
pub(crate) fn copy(from: &File, to: &File) -> io::Result<()> {
    match ioctl_ficlone(to, from) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS) => {
            copy_pieces(from, to)
        }
        Err(e) => Err(e.into()),
    }
}

fn copy_pieces(from: &File, to: &File) -> io::Result<()> {
    let len = from.metadata()?.len();
    let mut buf = Vec::new();
    let mut at = 0;
    while at < len {
        let start = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            // A filesystem that knows no holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            Err(e) => return Err(e.into()),
        };
        at = seek(from, SeekFrom::Hole(start)).unwrap_or(len);
        buf.resize(COPY_BYTES, 0);
        copy_range(from, to, start, at, &mut buf)?;
    }
    to.set_len(len)
}

fn copy_range(from: &File, to: &File, start: u64, end: u64, buf: &mut [u8]) -> io::Result<()> {
    let mut at = start;
    while at < end {
        let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(buf.len());
        let read = match from.read_at(&mut buf[..most], at) {
            // It became shorter meanwhile.
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        to.write_all_at(&buf[..read], at)?;
        at += read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn data_arrives_and_holes_stay_holes() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let from = File::options().read(true).write(true).create_new(true).open(path("from"));
        let from = from.unwrap();
        from.write_all_at(b"begin", 0).unwrap();
        from.write_all_at(&vec![7; 2 * COPY_BYTES + 3], 4 << 20).unwrap();
        from.set_len(64 << 20).unwrap();
        let to = File::create_new(path("to")).unwrap();
        copy_pieces(&from, &to).unwrap();
        assert!(std::fs::read(path("from")).unwrap() == std::fs::read(path("to")).unwrap());
        to.sync_all().unwrap();
        assert!(to.metadata().unwrap().blocks() * 512 < 8 << 20, "holes were filled");
        let empty = File::create_new(path("empty")).unwrap();
        let copied = File::create_new(path("copied")).unwrap();
        copy_pieces(&File::open(path("empty")).unwrap(), &copied).unwrap();
        drop(empty);
        assert_eq!(copied.metadata().unwrap().len(), 0);
    }
}
