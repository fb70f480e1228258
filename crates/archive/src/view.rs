//! The directory a layer is applied onto, as the container will see it.
//!
//! A view is a stack of directory trees: the one written (index 0) and, for the upper directory
//! of an overlay, those below it, newest first. Names are looked up as overlayfs would: the first
//! tree that knows a name decides, whiteouts hide what is below, directories merge until an opaque
//! one. A plain directory is a stack of one, without whiteouts.
//!
//! Paths here are *resolved*: relative, no `.`, `..` or symlink in them. [`View::enter`] makes
//! them, one name at a time, and the kernel is asked to fail should it meet a symlink on such a
//! path anyway. What is changed is changed by a single name relative to a directory handle.

mod change;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use gantry_errdefs::{Error, Result, ResultExt};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, fstat, openat, openat2,
    readlinkat, statat,
};
use rustix::io::Errno;

use crate::apply::making::Making;
use crate::attrs;
use crate::limits::{NAME_LEN_MAX, PATH_LEN_MAX};

/// Directory handles kept open. Layers list a directory's children together, so a few would do;
/// the bound keeps several unpackings at once far below the usual limit of 1024 files.
const DIR_CACHE_COUNT_MAX: usize = 96;

/// How overlayfs marks things in the trees of a view.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Overlay {
    /// The xattr of an opaque directory.
    pub(crate) opaque: &'static str,
    /// The trees below are not given: they may hold anything.
    pub(crate) lowers_unknown: bool,
}

/// A directory of the view.
#[derive(Debug)]
pub(crate) struct Dir {
    /// Its resolved path; empty for the root.
    pub(crate) path: PathBuf,
    /// The trees whose directory at this path is part of it, newest first.
    pub(crate) layers: Vec<usize>,
    /// The handle in the tree written, when it exists there.
    pub(crate) fd: Option<Arc<OwnedFd>>,
    /// Whether the kernel gives what is made in it access control lists no layer spoke of.
    pub(crate) gives_acls: Cell<bool>,
    /// Whether the view has a time for it.
    timed: Cell<bool>,
}

impl Dir {
    /// The handle to change the directory by.
    ///
    /// # Errors
    /// Internal when the directory was not made writable first.
    pub(crate) fn fd(&self) -> Result<&Arc<OwnedFd>> {
        self.fd.as_ref().ok_or_else(|| {
            Error::internal(format!("directory {:?} is not in the tree written", self.path))
        })
    }

    /// Makes `name`, just made in this directory, free of the lists it may have got from it, and
    /// says whether it may: then its mode is not that asked for either.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn disinherit(&self, name: &[u8]) -> Result<bool> {
        if self.gives_acls.get() {
            attrs::drop_given_acls(self.fd()?.as_fd(), name, &self.path.join(os(name)))?;
        }
        Ok(self.gives_acls.get())
    }

    /// Whether trees below the written one are part of it.
    pub(crate) fn merges(&self) -> bool {
        self.layers.iter().any(|l| *l != 0)
    }
}

/// What a name stands for.
#[derive(Debug)]
pub(crate) struct Node {
    /// The tree that decides.
    pub(crate) layer: usize,
    /// Its attributes there.
    pub(crate) stat: Stat,
    /// For a directory, the trees that merge in it, newest first.
    pub(crate) layers: Vec<usize>,
}

impl Node {
    /// The kind of inode.
    pub(crate) fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Whether it is a directory.
    pub(crate) fn is_dir(&self) -> bool {
        self.file_type() == FileType::Directory
    }
}

/// What to do about parents that do not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Make them, 0755 and root's.
    Create,
    /// Say that there is none.
    Tell,
}

/// The stack of trees.
pub(crate) struct View {
    layers: Vec<OwnedFd>,
    overlay: Option<Overlay>,
    symlink_count_max: usize,
    dirs: HashMap<PathBuf, Rc<Dir>>,
    /// The last path entered, as it was spelled, and where it led.
    memo: Option<(Vec<u8>, Rc<Dir>)>,
    /// Times to give directories at the end, by resolved path. `None`: leave as it is.
    pub(crate) times: BTreeMap<PathBuf, Option<Timespec>>,
    /// Directories made because something lies in them, while the trees below were not given: they
    /// get the attributes they have there when it is known, or remain as they are.
    pub(crate) assumed: BTreeSet<PathBuf>,
    /// Files of the tree written that another thread makes.
    pub(crate) making: Making,
}

impl View {
    /// A view of `root` with `lowers` below it, newest first.
    ///
    /// # Errors
    /// A directory cannot be opened.
    pub(crate) fn open(
        root: &Path,
        lowers: &[PathBuf],
        overlay: Option<Overlay>,
        symlink_count_max: usize,
    ) -> Result<Self> {
        let open = |path: &Path| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty())
                .map_err(std::io::Error::from)
                .context(|| format!("open directory {path:?}"))
        };
        let mut layers = vec![open(root)?];
        for lower in lowers {
            layers.push(open(lower)?);
        }
        let making = Making::default();
        // Nothing is there that the layer has not put there.
        if is_empty(&layers[0]).context(|| format!("read directory {root:?}"))? {
            making.allow();
        }
        Ok(Self {
            layers,
            overlay,
            symlink_count_max,
            dirs: HashMap::new(),
            memo: None,
            times: BTreeMap::new(),
            assumed: BTreeSet::new(),
            making,
        })
    }

    /// How overlayfs marks things here; `None` for a plain directory.
    pub(crate) fn overlay(&self) -> Option<Overlay> {
        self.overlay
    }

    /// The handle of the tree written.
    pub(crate) fn root_fd(&self) -> &OwnedFd {
        &self.layers[0]
    }

    /// The root directory.
    ///
    /// # Errors
    /// The handle cannot be copied.
    pub(crate) fn root(&mut self) -> Result<Rc<Dir>> {
        if let Some(dir) = self.dirs.get(Path::new("")) {
            return Ok(Rc::clone(dir));
        }
        let fd = self.layers[0].try_clone().context(|| "copy a directory handle")?;
        let mut layers = vec![0];
        if !self.is_opaque(0, Path::new(""))? {
            layers.extend(1..self.layers.len());
        }
        Ok(self.remember(PathBuf::new(), layers, Some(Arc::new(fd))))
    }

    /// Walks `names` from the root, following symlinks inside the view, to a directory.
    ///
    /// # Errors
    /// InvalidArgument when something on the way is no directory, loops, or is too long;
    /// FailedPrecondition when a parent must be made but might exist in a tree not given.
    pub(crate) fn enter(&mut self, names: &[&[u8]], missing: Missing) -> Result<Option<Rc<Dir>>> {
        let spelled = names.join(&b'/');
        if let Some((known, dir)) = &self.memo
            && *known == spelled
        {
            return Ok(Some(Rc::clone(dir)));
        }
        let mut todo: Vec<Vec<u8>> = names.iter().rev().map(|n| n.to_vec()).collect();
        let mut dir = self.root()?;
        let mut symlinks = 0;
        while let Some(name) = todo.pop() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    let parent = dir.path.parent().unwrap_or(Path::new("")).to_owned();
                    dir = self.reopen(&parent)?;
                    continue;
                }
                _ => {}
            }
            let path = child_path(&dir, &name)?;
            if let Some(known) = self.dirs.get(&path) {
                dir = Rc::clone(known);
                continue;
            }
            let Some(node) = self.lookup(&dir, &name)? else {
                match missing {
                    Missing::Create => dir = self.create_missing(&dir, &name)?,
                    Missing::Tell => return Ok(None),
                }
                continue;
            };
            match node.file_type() {
                FileType::Directory => dir = self.open_dir(path, node.layers)?,
                FileType::Symlink => {
                    symlinks += 1;
                    if symlinks > self.symlink_count_max {
                        return Err(Error::invalid_argument(format!(
                            "more than {} symlinks on the way",
                            self.symlink_count_max
                        )));
                    }
                    let target = self.read_link(node.layer, &path)?;
                    if target.starts_with(b"/") {
                        dir = self.root()?;
                    }
                    todo.extend(target.split(|b| *b == b'/').rev().map(<[u8]>::to_vec));
                    if todo.len() > PATH_LEN_MAX {
                        return Err(Error::invalid_argument("symlinks make the path too long"));
                    }
                }
                _ => return Err(Error::invalid_argument(format!("{path:?} is not a directory"))),
            }
        }
        self.memo = Some((spelled, Rc::clone(&dir)));
        Ok(Some(dir))
    }

    /// What `name` in `dir` stands for; `None` when nothing is there (or a whiteout says so).
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn lookup(&self, dir: &Dir, name: &[u8]) -> Result<Option<Node>> {
        self.lookup_in(dir, &dir.layers, name)
    }

    /// As [`Self::lookup`], without the tree written.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn lookup_below(&self, dir: &Dir, name: &[u8]) -> Result<Option<Node>> {
        let below: Vec<usize> = dir.layers.iter().copied().filter(|l| *l != 0).collect();
        self.lookup_in(dir, &below, name)
    }

    fn lookup_in(&self, dir: &Dir, layers: &[usize], name: &[u8]) -> Result<Option<Node>> {
        let mut found: Option<Node> = None;
        for &layer in layers {
            let Some(stat) = self.stat(layer, dir, name)? else { continue };
            let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            match &mut found {
                None if self.overlay.is_some() && is_whiteout(&stat) => return Ok(None),
                None => {
                    found = Some(Node { layer, stat, layers: vec![layer] });
                    if !is_dir {
                        break;
                    }
                }
                Some(_) if !is_dir => break,
                Some(node) => node.layers.push(layer),
            }
            if self.overlay.is_some() && self.is_opaque(layer, &dir.path.join(os(name)))? {
                break;
            }
        }
        Ok(found)
    }

    /// What tree `layer` itself holds at `name` in `dir`, whiteouts included.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn stat(&self, layer: usize, dir: &Dir, name: &[u8]) -> Result<Option<Stat>> {
        if layer == 0 {
            self.making.wait_for(|| dir.path.join(os(name)))?;
        }
        let stat = match (&dir.fd, layer) {
            (Some(fd), 0) => statat(fd, os(name), AtFlags::SYMLINK_NOFOLLOW),
            (None, 0) => return Ok(None),
            _ => self.open_path(layer, &dir.path.join(os(name))).and_then(fstat),
        };
        match stat {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(err) => {
                Err(Error::io(format!("look up {:?}", dir.path.join(os(name))), err.into()))
            }
        }
    }

    /// Opens what tree `layer` holds at a resolved path, for reading.
    ///
    /// # Errors
    /// The file system's; a symlink anywhere on the path is one (ELOOP).
    pub(crate) fn open_read(&self, layer: usize, path: &Path) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        open_beneath(&self.layers[layer], path, flags)
            .map_err(|e| Error::io(format!("open {path:?}"), e.into()))
    }

    /// The target of the symlink that tree `layer` holds at a resolved path.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn read_link(&self, layer: usize, path: &Path) -> Result<Vec<u8>> {
        self.open_path(layer, path)
            .and_then(|fd| readlinkat(fd, "", Vec::new()))
            .map(std::ffi::CString::into_bytes)
            .map_err(|e| Error::io(format!("read symlink {path:?}"), e.into()))
    }

    /// The extended attributes of what tree `layer` holds at `path`, overlayfs' own left out.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn xattrs(&self, layer: usize, path: &Path) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let fd = self
            .open_path(layer, path)
            .map_err(|e| Error::io(format!("open {path:?}"), e.into()))?;
        attrs::read_xattrs(fd.as_fd(), path)
    }

    /// Forgets where the last path led: a name on it may be about to stand for something else.
    pub(crate) fn forget_memo(&mut self) {
        self.memo = None;
    }

    /// Forgets every directory at or under a path that was removed or became opaque.
    pub(crate) fn forget(&mut self, path: &Path) {
        // Looking at bytes first: most begin otherwise, and comparing components takes longer.
        let bytes = path.as_os_str().as_bytes();
        let under = |p: &Path| p.as_os_str().as_bytes().starts_with(bytes) && p.starts_with(path);
        self.dirs.retain(|p, _| !under(p));
        self.memo = None;
    }

    /// The directory at a resolved path known to be one.
    ///
    /// # Errors
    /// Internal when it is none; the file system's.
    pub(crate) fn reopen(&mut self, path: &Path) -> Result<Rc<Dir>> {
        self.find(path)?.ok_or_else(|| Error::internal(format!("directory {path:?} is gone")))
    }

    /// The directory at a resolved path; `None` when something else or nothing is there.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn find(&mut self, path: &Path) -> Result<Option<Rc<Dir>>> {
        if let Some(dir) = self.dirs.get(path) {
            return Ok(Some(Rc::clone(dir)));
        }
        let mut at = self.root()?;
        for name in path.iter() {
            match self.child(&at, name.as_bytes())? {
                Some(next) => at = next,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    fn child(&mut self, dir: &Dir, name: &[u8]) -> Result<Option<Rc<Dir>>> {
        let path = child_path(dir, name)?;
        if let Some(known) = self.dirs.get(&path) {
            return Ok(Some(Rc::clone(known)));
        }
        match self.lookup(dir, name)? {
            Some(node) if node.is_dir() => self.open_dir(path, node.layers).map(Some),
            _ => Ok(None),
        }
    }

    fn open_dir(&mut self, path: PathBuf, layers: Vec<usize>) -> Result<Rc<Dir>> {
        let fd = match layers.first() {
            Some(0) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let parent = path.parent().and_then(|p| self.dirs.get(p));
                let fd = match (parent.and_then(|d| d.fd.as_ref()), path.file_name()) {
                    (Some(parent), Some(name)) => openat(parent, name, flags, Mode::empty()),
                    _ => open_beneath(&self.layers[0], &path, flags),
                };
                let failed = |e: Errno| Error::io(format!("open directory {path:?}"), e.into());
                Some(Arc::new(fd.map_err(failed)?))
            }
            _ => None,
        };
        Ok(self.remember(path, layers, fd))
    }

    fn remember(&mut self, path: PathBuf, layers: Vec<usize>, fd: Option<Arc<OwnedFd>>) -> Rc<Dir> {
        let gives_acls = Cell::new(fd.as_ref().is_some_and(|fd| attrs::gives_acls(fd.as_fd())));
        let dir = Dir { path, layers, fd, gives_acls, timed: Cell::new(false) };
        if self.dirs.len() >= DIR_CACHE_COUNT_MAX {
            self.dirs.clear();
        }
        let dir = Rc::new(dir);
        self.dirs.insert(dir.path.clone(), Rc::clone(&dir));
        dir
    }

    fn is_opaque(&self, layer: usize, path: &Path) -> Result<bool> {
        let Some(overlay) = self.overlay else { return Ok(false) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match open_beneath(&self.layers[layer], path, flags) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
            Err(e) => return Err(Error::io(format!("open directory {path:?}"), e.into())),
        };
        Ok(attrs::is_opaque(fd.as_fd(), overlay.opaque))
    }

    fn open_path(&self, layer: usize, path: &Path) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        open_beneath(&self.layers[layer], path, flags)
    }
}

/// Whether a directory holds nothing.
fn is_empty(dir: &OwnedFd) -> std::io::Result<bool> {
    for entry in rustix::fs::Dir::read_from(dir)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A name as the system calls take it.
pub(crate) fn os(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}

/// Whether an inode is how overlayfs says "deleted".
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// The path of `name` in `dir`.
///
/// # Errors
/// InvalidArgument when the name or the path is longer than the kernel takes.
pub(crate) fn child_path(dir: &Dir, name: &[u8]) -> Result<PathBuf> {
    if name.len() > NAME_LEN_MAX {
        return Err(Error::invalid_argument(format!("a name is over {NAME_LEN_MAX} bytes")));
    }
    let path = dir.path.join(os(name));
    if path.as_os_str().len() > PATH_LEN_MAX {
        return Err(Error::invalid_argument(format!("the path is over {PATH_LEN_MAX} bytes")));
    }
    Ok(path)
}

/// The error for a layer that cannot be applied before the ones below it are known.
pub(crate) fn needs_lowers(path: &Path, what: &str) -> Error {
    Error::failed_precondition(format!(
        "{what} of the layer, {path:?}, is in a lower layer, and those were not given"
    ))
}

/// Opens a resolved path in a tree; fails should a symlink be on it.
///
/// # Errors
/// The kernel's.
pub(crate) fn open_beneath(
    root: &OwnedFd,
    path: &Path,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    openat2(root, path, flags, Mode::empty(), resolve)
}
