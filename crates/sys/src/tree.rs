//! Walking, measuring, syncing and removing directory trees that someone else filled.
//!
//! A container may leave a tree of any depth and any names, and may change it meanwhile. So all
//! steps go by descriptor and never follow a symbolic link; nothing recurses on the stack; and at
//! most [`OPEN_LEVELS_MAX`] directories are open at once, older ones being found again through
//! `..` and checked.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat, fstat, fsync, openat, statat, unlinkat,
};
use rustix::io::Errno;

/// Most directories one walk has open.
pub const OPEN_LEVELS_MAX: usize = 64;

/// Bytes of directory entries read at once.
const ENTRIES_BYTES: usize = 32 * 1024;

/// What a walk calls. Directories get [`Visitor::entry`] before what is in them and
/// [`Visitor::leave`] after; everything else [`Visitor::entry`] alone. The root gets neither.
pub trait Visitor {
    /// An entry `name` of the open directory `dir`.
    ///
    /// # Errors
    /// Ends the walk.
    fn entry(&mut self, dir: BorrowedFd<'_>, name: &CStr, kind: FileType) -> io::Result<()>;

    /// The directory `name` is walked from now until the matching [`Visitor::leave`]; not called
    /// for one that was gone when its turn came.
    fn enter(&mut self, name: &CStr) {
        let _ = name;
    }

    /// The directory `name` of the open directory `parent` was walked; `dir` is itself.
    ///
    /// # Errors
    /// Ends the walk.
    fn leave(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        dir: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let _ = (parent, name, dir);
        Ok(())
    }
}

/// Walks the tree at the directory `root`. Entries that come or go meanwhile may or may not be
/// seen.
///
/// # Errors
/// The I/O error, or that of the visitor.
pub fn walk(root: &Path, visitor: &mut impl Visitor) -> io::Result<()> {
    let mut stack = vec![Level::read(open_dir(CWD, root)?, CString::default(), visitor)?];
    while let Some(level) = stack.last_mut() {
        if let Some(name) = level.subdirs.pop() {
            let dir = level.dir()?;
            match open_dir(dir, name.as_c_str()) {
                Ok(fd) => {
                    visitor.enter(&name);
                    stack.push(Level::read(fd, name, visitor)?);
                }
                // Removed or replaced meanwhile.
                Err(e) if matches!(errno(&e), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)) => {
                }
                Err(e) => return Err(e),
            }
            if let Some(old) = stack.len().checked_sub(OPEN_LEVELS_MAX + 1) {
                stack[old].dir = None;
            }
            continue;
        }
        let Some(done) = stack.pop() else { break };
        if let Some(parent) = stack.last_mut() {
            let dir = done.dir()?;
            if parent.dir.is_none() {
                parent.reopen(dir)?;
            }
            visitor.leave(parent.dir()?, &done.name, dir)?;
        }
    }
    Ok(())
}

/// Disk use of a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measure {
    /// Inodes, the root directory included; hard links count once.
    pub inodes: u64,
    /// Bytes of disk blocks.
    pub bytes: u64,
}

/// One name of a tree.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    /// The open directory that has it; the root's own is `root` itself.
    pub dir: BorrowedFd<'a>,
    /// The name in `dir`; empty for the root.
    pub name: &'a CStr,
    /// The path from the root, without a leading slash; empty for the root.
    pub path: &'a [u8],
    /// Its attributes.
    pub stat: &'a Stat,
}

/// Measures the tree at the directory `root`.
///
/// # Errors
/// The I/O error.
pub fn measure(root: &Path) -> io::Result<Measure> {
    measure_each(root, &mut |_| Ok(()))
}

/// As [`measure`], and shows every name to `each` on the way, the root's first.
///
/// # Errors
/// The I/O error, or that of `each`.
pub fn measure_each(
    root: &Path,
    each: &mut dyn FnMut(Named<'_>) -> io::Result<()>,
) -> io::Result<Measure> {
    struct Sum<'e> {
        total: Measure,
        linked: HashSet<(u64, u64)>,
        each: &'e mut dyn FnMut(Named<'_>) -> io::Result<()>,
        /// Of the directory being walked, with a slash at its end unless it is the root.
        path: Vec<u8>,
    }
    impl Sum<'_> {
        fn add(&mut self, stat: &Stat) {
            let directory = FileType::from_raw_mode(stat.st_mode).is_dir();
            if directory || stat.st_nlink < 2 || self.linked.insert((stat.st_dev, stat.st_ino)) {
                self.total.inodes += 1;
                // Blocks are of 512 bytes, whatever the filesystem.
                self.total.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
            }
        }
    }
    impl Visitor for Sum<'_> {
        fn entry(&mut self, dir: BorrowedFd<'_>, name: &CStr, _: FileType) -> io::Result<()> {
            let stat = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => return Ok(()),
                Err(e) => return Err(e.into()),
            };
            self.add(&stat);
            let len = self.path.len();
            self.path.extend_from_slice(name.to_bytes());
            let shown = (self.each)(Named { dir, name, path: &self.path, stat: &stat });
            self.path.truncate(len);
            shown
        }

        fn enter(&mut self, name: &CStr) {
            self.path.extend_from_slice(name.to_bytes());
            self.path.push(b'/');
        }

        fn leave(&mut self, _: BorrowedFd<'_>, name: &CStr, _: BorrowedFd<'_>) -> io::Result<()> {
            self.path.truncate(self.path.len() - name.to_bytes().len() - 1);
            Ok(())
        }
    }
    let top = open_dir(CWD, root)?;
    let stat = fstat(&top)?;
    each(Named { dir: top.as_fd(), name: c"", path: b"", stat: &stat })?;
    drop(top);
    let mut sum = Sum { total: Measure::default(), linked: HashSet::new(), each, path: Vec::new() };
    sum.add(&stat);
    walk(root, &mut sum)?;
    Ok(sum.total)
}

/// Whether the tree at the directory `root` has more than `count` names, its own left out. Looks at
/// no more directories than it takes to know.
///
/// # Errors
/// The I/O error.
pub fn has_more_than(root: &Path, count: usize) -> io::Result<bool> {
    struct Count {
        left: Option<usize>,
    }
    impl Visitor for Count {
        fn entry(&mut self, _: BorrowedFd<'_>, _: &CStr, _: FileType) -> io::Result<()> {
            self.left = self.left.and_then(|left| left.checked_sub(1));
            // Any error ends the walk.
            self.left.map(drop).ok_or_else(|| io::ErrorKind::Interrupted.into())
        }
    }
    let mut names = Count { left: Some(count) };
    match walk(root, &mut names) {
        Err(_) if names.left.is_none() => Ok(true),
        walked => walked.map(|()| false),
    }
}

/// Makes every file and directory of the tree durable, file by file. Right for small trees; for
/// big ones one [`crate::durable::sync_filesystem`] is cheaper.
///
/// # Errors
/// The I/O error.
pub fn sync(root: &Path) -> io::Result<()> {
    struct Sync;
    impl Visitor for Sync {
        fn entry(&mut self, dir: BorrowedFd<'_>, name: &CStr, kind: FileType) -> io::Result<()> {
            // Other kinds are all in their directory's and their own inode, which the directory's
            // sync writes with it.
            if !kind.is_file() {
                return Ok(());
            }
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = openat(dir, name, flags, Mode::empty())?;
            Ok(fsync(file)?)
        }

        fn leave(&mut self, _: BorrowedFd<'_>, _: &CStr, dir: BorrowedFd<'_>) -> io::Result<()> {
            Ok(fsync(dir)?)
        }
    }
    walk(root, &mut Sync)?;
    Ok(fsync(open_dir(CWD, root)?)?)
}

/// Removes the tree at `root`, whatever is there; nothing there is success. Mounts inside are not
/// looked for: a mount point stays and the error says so.
///
/// # Errors
/// The I/O error.
pub fn remove(root: &Path) -> io::Result<()> {
    struct Remove;
    impl Visitor for Remove {
        fn entry(&mut self, dir: BorrowedFd<'_>, name: &CStr, kind: FileType) -> io::Result<()> {
            if kind.is_dir() { Ok(()) } else { gone(unlinkat(dir, name, AtFlags::empty())) }
        }

        fn leave(
            &mut self,
            parent: BorrowedFd<'_>,
            name: &CStr,
            _: BorrowedFd<'_>,
        ) -> io::Result<()> {
            gone(unlinkat(parent, name, AtFlags::REMOVEDIR))
        }
    }
    fn gone(result: rustix::io::Result<()>) -> io::Result<()> {
        match result {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
    match walk(root, &mut Remove) {
        Ok(()) => gone(unlinkat(CWD, root, AtFlags::REMOVEDIR)),
        Err(e) => match errno(&e) {
            Some(Errno::NOENT) => Ok(()),
            Some(Errno::NOTDIR | Errno::LOOP) => gone(unlinkat(CWD, root, AtFlags::empty())),
            _ => Err(e),
        },
    }
}

/// One directory on the way from the root to where the walk is.
struct Level {
    /// Closed when the walk is far below.
    dir: Option<OwnedFd>,
    id: (u64, u64),
    name: CString,
    /// Directories still to walk.
    subdirs: Vec<CString>,
}

impl Level {
    fn read(dir: OwnedFd, name: CString, visitor: &mut impl Visitor) -> io::Result<Self> {
        let stat = fstat(&dir)?;
        let mut subdirs = Vec::new();
        entries(dir.as_fd(), &mut |name, kind| {
            visitor.entry(dir.as_fd(), name, kind)?;
            if kind.is_dir() {
                subdirs.push(name.to_owned());
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(Self { dir: Some(dir), id: (stat.st_dev, stat.st_ino), name, subdirs })
    }

    fn dir(&self) -> io::Result<BorrowedFd<'_>> {
        self.dir.as_ref().map(AsFd::as_fd).ok_or_else(|| moved(&self.name))
    }

    /// Opens the directory again as the parent of `child`.
    fn reopen(&mut self, child: BorrowedFd<'_>) -> io::Result<()> {
        let dir = open_dir(child, c"..")?;
        let stat = fstat(&dir)?;
        if (stat.st_dev, stat.st_ino) != self.id {
            return Err(moved(&self.name));
        }
        self.dir = Some(dir);
        Ok(())
    }
}

/// Calls `each` for every entry of `dir` but `.` and `..`.
///
/// # Errors
/// The I/O error, or that of `each`.
pub fn entries(
    dir: BorrowedFd<'_>,
    each: &mut dyn FnMut(&CStr, FileType) -> io::Result<ControlFlow<()>>,
) -> io::Result<()> {
    let mut buf = vec![MaybeUninit::<u8>::uninit(); ENTRIES_BYTES];
    let mut raw = RawDir::new(dir, &mut buf);
    while let Some(entry) = raw.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let mut kind = entry.file_type();
        if kind == FileType::Unknown {
            match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => kind = FileType::from_raw_mode(stat.st_mode),
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(e.into()),
            }
        }
        if each(name, kind)?.is_break() {
            break;
        }
    }
    Ok(())
}

fn open_dir(dir: impl AsFd, name: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(dir, name, flags, Mode::empty())?)
}

fn moved(name: &CStr) -> io::Error {
    let name = name.to_string_lossy();
    io::Error::other(format!("directory {name:?} was moved while its tree was walked"))
}

fn errno(err: &io::Error) -> Option<Errno> {
    Errno::from_io_error(err)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A tree deeper than a path may be long, made step by step.
    fn deep(root: &Path, levels: usize) {
        let mut dir = open_dir(CWD, root).unwrap();
        for _ in 0..levels {
            rustix::fs::mkdirat(&dir, c"deep-directory", Mode::from_raw_mode(0o755)).unwrap();
            openat(&dir, c"file", OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0o600))
                .unwrap();
            dir = open_dir(&dir, c"deep-directory").unwrap();
        }
    }

    #[test]
    fn deep_trees_are_measured_synced_and_removed() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("tree");
        fs::create_dir(&root).unwrap();
        deep(&root, 1000);
        assert_eq!(measure(&root).unwrap().inodes, 2001);
        sync(&root).unwrap();
        remove(&root).unwrap();
        assert!(!root.exists());
        remove(&root).unwrap();
    }

    #[test]
    fn names_are_counted_as_far_as_asked() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        assert!(!has_more_than(root, 0).unwrap());
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/file"), "").unwrap();
        assert_eq!(
            [2, 3, 4].map(|count| has_more_than(root, count).unwrap()),
            [true, false, false]
        );
        assert!(has_more_than(&root.join("none"), 1).is_err());
    }

    #[test]
    fn every_name_is_shown_with_its_path() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir(root.join("c")).unwrap();
        for file in ["a/1", "a/b/2", "c/3", "4"] {
            fs::write(root.join(file), file).unwrap();
        }
        let mut seen = Vec::new();
        measure_each(root, &mut |named| {
            let path = String::from_utf8(named.path.to_vec()).unwrap();
            assert!(path.ends_with(named.name.to_str().unwrap()));
            seen.push(path);
            Ok(())
        })
        .unwrap();
        seen.sort();
        assert_eq!(seen, ["", "4", "a", "a/1", "a/b", "a/b/2", "c", "c/3"]);
    }

    #[test]
    fn links_count_once_and_are_not_followed() {
        let temp = tempfile::tempdir().unwrap();
        let outside = temp.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        let root = temp.path().join("tree");
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::write(root.join("file"), vec![1; 10_000]).unwrap();
        fs::hard_link(root.join("file"), root.join("sub/link")).unwrap();
        symlink(&outside, root.join("symlink")).unwrap();
        // Root, sub, file, symlink.
        assert_eq!(measure(&root).unwrap().inodes, 4);
        assert!(measure(&root).unwrap().bytes >= 12_288);
        remove(&root).unwrap();
        assert!(outside.join("kept").exists());
        // A root that is a link, or a file, goes itself.
        symlink(&outside, &root).unwrap();
        remove(&root).unwrap();
        fs::write(&root, "").unwrap();
        remove(&root).unwrap();
        assert!(!root.exists() && outside.join("kept").exists());
    }
}
