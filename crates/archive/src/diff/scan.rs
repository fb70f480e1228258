//! Finding what changed.
//!
//! A scan yields every change in the order it will be written: parents before children, children
//! by name. Three passes: walk, then keep what changed with its parents and hard-link siblings,
//! then name the first of each inode the file and the others links to it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use gantry_errdefs::{Error, Result, ResultExt};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, statat};
use rustix::io::Errno;

use crate::diff::Changes;
use crate::view::{is_whiteout, open_beneath, os};
use crate::{WHITEOUT_PREFIX, attrs};

/// Bytes compared at once when only content can tell two files apart.
const COMPARE_BYTES: usize = 64 << 10;

/// One directory tree being read.
pub(super) struct Tree {
    root: OwnedFd,
    name: PathBuf,
}

/// One line of a layer to be.
#[derive(Debug)]
pub(super) struct Change {
    /// The path in the tree.
    pub(super) path: PathBuf,
    /// What to write about it.
    pub(super) what: What,
}

/// What to write about a path.
#[derive(Debug)]
pub(super) enum What {
    /// The inode as it is.
    Write(Stat),
    /// Another name of a path written before.
    Link(PathBuf, Stat),
    /// The path is gone.
    Delete,
    /// All that older layers have in this directory is gone.
    Opaque,
    /// Nothing, unless a child or another name of the inode changed.
    Same(Stat),
}

/// Walks the trees.
///
/// # Errors
/// See [`crate::diff()`].
pub(super) fn scan(changes: &Changes, precise: bool) -> Result<(Tree, Vec<Change>)> {
    let (tree, mut list) = match changes {
        Changes::Trees { lower, upper } => {
            let upper = Tree::open(upper)?;
            let lower = lower.as_deref().map(Tree::open).transpose()?;
            let mut compare = Compare { upper, precise, list: Vec::new(), inodes: HashMap::new() };
            compare.dir(Path::new(""), lower.as_ref())?;
            (compare.upper, compare.list)
        }
        Changes::OverlayUpper { upper, userxattr } => {
            let tree = Tree::open(upper)?;
            let prefix = if *userxattr { "user.overlay." } else { "trusted.overlay." };
            let mut list = Vec::new();
            overlay_dir(&tree, Path::new(""), prefix, &mut list)?;
            (tree, list)
        }
    };
    keep_changes(&mut list);
    name_links(&mut list);
    Ok((tree, list))
}

impl Tree {
    fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())
            .map_err(std::io::Error::from)
            .context(|| format!("open directory {path:?}"))?;
        Ok(Self { root, name: path.to_owned() })
    }

    /// Opens what is at `path` for reading; never through a symlink, never waiting for a pipe.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn open_read(&self, path: &Path) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        open_beneath(&self.root, path, flags).map_err(|e| self.failed("open", path, e))
    }

    /// The target of a symlink.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn read_link(&self, path: &Path) -> Result<Vec<u8>> {
        let fd = self.open_path(path)?;
        rustix::fs::readlinkat(fd, "", Vec::new())
            .map(std::ffi::CString::into_bytes)
            .map_err(|e| self.failed("read symlink", path, e))
    }

    /// The extended attributes of what is at `path`, overlayfs' own left out.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn xattrs(&self, path: &Path) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        attrs::read_xattrs(self.open_path(path)?.as_fd(), path)
    }

    fn open_path(&self, path: &Path) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        open_beneath(&self.root, path, flags).map_err(|e| self.failed("open", path, e))
    }

    /// Children by name, without what a layer cannot say: sockets, which mean nothing without
    /// their process, and names that would delete when the layer is applied.
    fn children(&self, path: &Path) -> Result<BTreeMap<Vec<u8>, Stat>> {
        let fd = self.open_read(path)?;
        let mut found = BTreeMap::new();
        let entries = rustix::fs::Dir::read_from(fd.as_fd());
        for entry in entries.map_err(|e| self.failed("list", path, e))? {
            let entry = entry.map_err(|e| self.failed("list", path, e))?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            if name.starts_with(WHITEOUT_PREFIX.as_bytes()) {
                tracing::warn!(path = %path.join(os(name)).display(),
                    "left out of the layer: its name would be a whiteout");
                continue;
            }
            let stat = statat(&fd, os(name), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| self.failed("look up", &path.join(os(name)), e))?;
            if file_type(&stat) != FileType::Socket {
                found.insert(name.to_vec(), stat);
            }
        }
        Ok(found)
    }

    fn failed(&self, what: &str, path: &Path, err: Errno) -> Error {
        Error::io(format!("{what} {:?}", self.name.join(path)), err.into())
    }
}

/// The kind of inode a stat result describes.
pub(super) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn is_dir(stat: &Stat) -> bool {
    file_type(stat) == FileType::Directory
}

type Inode = (u64, u64);

fn inode(stat: &Stat) -> Inode {
    (stat.st_dev, stat.st_ino)
}

/// Whether an inode may have names elsewhere.
fn is_linked(stat: &Stat) -> bool {
    !is_dir(stat) && stat.st_nlink > 1
}

/// Comparing two trees.
struct Compare {
    upper: Tree,
    precise: bool,
    list: Vec<Change>,
    /// Which inode of the upper tree each linked one of the lower became, to see links that were
    /// taken apart or put together without any file changing.
    inodes: HashMap<Inode, Inode>,
}

impl Compare {
    fn dir(&mut self, path: &Path, lower: Option<&Tree>) -> Result<()> {
        let mut uppers = self.upper.children(path)?;
        let mut lowers = lower.map(|l| l.children(path)).transpose()?.unwrap_or_default();
        // A device that overlayfs takes for a deletion cannot be applied.
        uppers.retain(|_, stat| !is_whiteout(stat));
        lowers.retain(|_, stat| !is_whiteout(stat));
        let mut names: Vec<&Vec<u8>> = uppers.keys().chain(lowers.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            let path = path.join(os(name));
            let Some(new) = uppers.get(name) else {
                self.list.push(Change { path, what: What::Delete });
                continue;
            };
            let old = lowers.get(name);
            let same = match (old, lower) {
                (Some(old), Some(lower)) => self.is_same(lower, old, new, &path)?,
                _ => false,
            };
            let what = if same { What::Same(*new) } else { What::Write(*new) };
            if !same || is_dir(new) || is_linked(new) {
                self.list.push(Change { path: path.clone(), what });
            }
            if is_dir(new) {
                self.dir(&path, lower.filter(|_| old.is_some_and(is_dir)))?;
            }
        }
        Ok(())
    }

    fn is_same(&mut self, lower: &Tree, old: &Stat, new: &Stat, path: &Path) -> Result<bool> {
        if inode(old) == inode(new) {
            return Ok(true);
        }
        if old.st_mode != new.st_mode
            || (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid)
            || old.st_mtime != new.st_mtime
            || (self.precise && old.st_mtime_nsec != new.st_mtime_nsec)
        {
            return Ok(false);
        }
        if !is_dir(new) {
            if old.st_rdev != new.st_rdev || old.st_size != new.st_size {
                return Ok(false);
            }
            if (is_linked(old) || is_linked(new)) && !self.same_links(old, new) {
                return Ok(false);
            }
        }
        if lower.xattrs(path)? != self.upper.xattrs(path)? {
            return Ok(false);
        }
        match file_type(new) {
            FileType::Symlink => Ok(lower.read_link(path)? == self.upper.read_link(path)?),
            FileType::RegularFile => {
                // Times cut to seconds, as layers bring them, do not tell a quick change.
                let cut = old.st_mtime_nsec == 0 || new.st_mtime_nsec == 0;
                if cut {
                    same_content(lower.open_read(path)?, self.upper.open_read(path)?, path)
                } else {
                    Ok(old.st_mtime_nsec == new.st_mtime_nsec)
                }
            }
            _ => Ok(true),
        }
    }

    fn same_links(&mut self, old: &Stat, new: &Stat) -> bool {
        old.st_nlink == new.st_nlink
            && *self.inodes.entry(inode(old)).or_insert(inode(new)) == inode(new)
    }
}

fn same_content(old: OwnedFd, new: OwnedFd, path: &Path) -> Result<bool> {
    let (old, new) = (std::fs::File::from(old), std::fs::File::from(new));
    let (mut a, mut b) = (vec![0; COMPARE_BYTES], vec![0; COMPARE_BYTES]);
    let mut at = 0;
    loop {
        let len = read_at(&old, &mut a, at).context(|| format!("read {path:?}"))?;
        let other = read_at(&new, &mut b, at).context(|| format!("read {path:?}"))?;
        if a[..len] != b[..other] {
            return Ok(false);
        }
        if len == 0 {
            return Ok(true);
        }
        at += len as u64;
    }
}

/// Reads until `buf` is full or the file ends.
fn read_at(file: &std::fs::File, buf: &mut [u8], at: u64) -> std::io::Result<usize> {
    use std::os::unix::fs::FileExt;
    let mut len = 0;
    while len < buf.len() {
        match file.read_at(&mut buf[len..], at + len as u64) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(len)
}

/// Reads the upper directory of an overlay.
fn overlay_dir(tree: &Tree, path: &Path, prefix: &str, list: &mut Vec<Change>) -> Result<()> {
    let fd = tree.open_read(path)?;
    if attrs::xattr(fd.as_fd(), &format!("{prefix}redirect")).is_some() {
        return Err(Error::failed_precondition(format!(
            "directory {:?} was moved by an overlay with redirect_dir: compare the mounted tree",
            tree.name.join(path)
        )));
    }
    if attrs::is_opaque(fd.as_fd(), &format!("{prefix}opaque")) {
        list.push(Change { path: path.to_owned(), what: What::Opaque });
    }
    for (name, stat) in tree.children(path)? {
        let path = path.join(os(&name));
        if is_whiteout(&stat) {
            list.push(Change { path, what: What::Delete });
            continue;
        }
        let metacopy = file_type(&stat) == FileType::RegularFile
            && attrs::xattr(tree.open_read(&path)?.as_fd(), &format!("{prefix}metacopy")).is_some();
        if metacopy {
            return Err(Error::failed_precondition(format!(
                "file {:?} has its data in a lower layer (metacopy): compare the mounted tree",
                tree.name.join(&path)
            )));
        }
        list.push(Change { path: path.clone(), what: What::Write(stat) });
        if is_dir(&stat) {
            overlay_dir(tree, &path, prefix, list)?;
        }
    }
    Ok(())
}

/// Drops what did not change, but for parents of changes and other names of changed inodes.
fn keep_changes(list: &mut Vec<Change>) {
    let changed: HashSet<Inode> = list
        .iter()
        .filter_map(|c| match &c.what {
            What::Write(stat) if is_linked(stat) => Some(inode(stat)),
            _ => None,
        })
        .collect();
    let mut keep = vec![false; list.len()];
    let mut next_kept: Option<&Path> = None;
    // Backwards: what follows a directory, if anything of it is kept, is under it.
    for (i, change) in list.iter().enumerate().rev() {
        keep[i] = match &change.what {
            What::Same(stat) if is_dir(stat) => {
                next_kept.is_some_and(|p| p.starts_with(&change.path))
            }
            What::Same(stat) => changed.contains(&inode(stat)),
            _ => true,
        };
        if keep[i] {
            next_kept = Some(&change.path);
        }
    }
    let mut kept = keep.into_iter();
    list.retain(|_| kept.next().unwrap_or(true));
}

/// Makes every later name of an inode a link to the first, and what is kept a write.
fn name_links(list: &mut [Change]) {
    let mut first: HashMap<Inode, PathBuf> = HashMap::new();
    for change in list {
        let (What::Write(stat) | What::Same(stat)) = change.what else { continue };
        change.what = match first.get(&inode(&stat)) {
            Some(path) if is_linked(&stat) => What::Link(path.clone(), stat),
            _ => {
                if is_linked(&stat) {
                    first.insert(inode(&stat), change.path.clone());
                }
                What::Write(stat)
            }
        };
    }
}

/// A path as bytes.
pub(super) fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}
