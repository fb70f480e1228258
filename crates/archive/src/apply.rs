//! Applying a layer.

mod delete;
pub(crate) mod making;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use gantry_core::Digest;
use gantry_errdefs::{Class, Error, Result};
use gantry_sys::durable::Writeback;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, linkat, makedev, mknodat, openat, symlinkat};
use rustix::io::Errno;
use tracing::{debug, warn};

use crate::attrs::{self, Attributes};
use crate::compression::Compression;
use crate::entry::{Archive, Entry, Kind};
use crate::pipe;
use crate::remove::{self, Written};
use crate::view::{Dir, Missing, Node, Overlay, View, child_path, needs_lowers, os};
use crate::{Limits, WHITEOUT_OPAQUE, WHITEOUT_PREFIX, copyup};
use making::Job;

/// Files smaller than this go to disk with the sync before the commit: asking earlier costs a call
/// each.
const WRITEBACK_BYTES_MIN: u64 = 64 << 10;

/// The kind of directory a layer is applied onto, and so the way deletions are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// The whole tree: what a layer deletes is removed. Also right for a mounted overlay.
    #[default]
    Tree,
    /// The upper directory of an overlay that is not mounted: what a layer deletes becomes a
    /// whiteout or an opaque directory.
    OverlayUpper {
        /// The overlay will be mounted with `userxattr` (in a user namespace).
        userxattr: bool,
    },
}

/// The layers under an overlay's upper directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lowers {
    /// Their directories, newest first; empty for the bottom layer. The new layer is resolved
    /// against them as if the overlay were mounted: symlinks on the way to an entry, attributes
    /// of parents the layer does not name, hard links to older files, needless whiteouts.
    Known(Vec<PathBuf>),
    /// Not there yet, as when layers are unpacked side by side. A layer that says nearly everything
    /// itself still applies, to be finished by [`settle`] once they are there; one that needs the
    /// layers below is refused, here or there, with FailedPrecondition and can be applied again,
    /// onto an emptied directory, once they are known.
    Unknown,
}

impl Default for Lowers {
    fn default() -> Self {
        Self::Known(Vec::new())
    }
}

/// How to apply a layer.
#[derive(Clone, Debug, Default)]
pub struct ApplyOptions {
    /// What the directory is.
    pub target: Target,
    /// What lies below it; read only with [`Target::OverlayUpper`].
    pub lowers: Lowers,
    /// What the layer may cost.
    pub limits: Limits,
    /// Whether everything is on disk when [`apply`] returns (one `syncfs`).
    pub sync: bool,
}

/// What was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Digest of the plain tar stream, to be compared with the image config's diff ID.
    pub diff_id: Digest,
    /// Bytes of the plain tar stream.
    pub size: u64,
    /// How the stream was compressed.
    pub compression: Compression,
    /// Entries applied, whiteouts included.
    pub entries: u64,
    /// What remains for [`settle`]; something only with [`Lowers::Unknown`].
    pub unsettled: Unsettled,
}

/// What of a layer depends on the layers below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unsettled {
    /// Whiteouts that may hide nothing.
    whiteouts: Vec<PathBuf>,
    /// Directories that the layer writes into without naming them.
    parents: BTreeSet<PathBuf>,
}

impl Unsettled {
    /// Whether nothing depends on them.
    pub fn is_empty(&self) -> bool {
        self.whiteouts.is_empty() && self.parents.is_empty()
    }
}

/// Applies the layer read from `reader`, in any compression, onto the directory `root`.
///
/// On an error the directory holds part of the layer and is good for nothing but removal; what is
/// outside it is never touched. Directories the layer writes into without naming them keep their
/// time of modification, so that the result follows from the layer alone.
///
/// Differences from what tar does: `.wh.` entries delete; the root directory's own entry is passed
/// by, as containerd does; hard links never change the file they link to.
///
/// # Errors
/// InvalidArgument naming the entry for a layer that is damaged, tries to leave `root`, or passes
/// a limit; FailedPrecondition for a layer that needs lowers which are [`Lowers::Unknown`];
/// ResourceExhausted when the disk is full; else the class of the I/O error.
pub fn apply(reader: impl Read + Send, root: &Path, options: &ApplyOptions) -> Result<Applied> {
    let limits = &options.limits;
    let ((entries, unsettled), inflated) =
        pipe::overlapped(reader, limits.stream_bytes_max, |plain| {
            let mut archive = Archive::new(plain, limits.clone());
            let mut applying = Applying::open(root, options)?;
            while let Some(entry) = archive.next()? {
                applying.entry(&entry, &mut archive).map_err(|e| name_entry(&entry, e))?;
            }
            applying.finish(options.sync)
        })?;
    Ok(Applied {
        diff_id: inflated.diff_id,
        size: inflated.size,
        compression: inflated.compression,
        entries,
        unsettled,
    })
}

/// Finishes an upper directory that was applied with [`Lowers::Unknown`], now that `lowers`
/// (newest first) are there. Directories that it does not name get the attributes they have there.
/// Whiteouts that hide nothing are removed: in a directory that no other layer has, overlayfs would
/// list them as files nobody can open.
///
/// # Errors
/// FailedPrecondition when the layer wrote into what is no directory in the layers below: it must
/// be applied again; the file system's.
pub fn settle(
    root: &Path,
    target: Target,
    lowers: &[PathBuf],
    unsettled: &Unsettled,
) -> Result<()> {
    let options =
        ApplyOptions { target, lowers: Lowers::Known(lowers.to_vec()), ..ApplyOptions::default() };
    let mut applying = Applying::open(root, &options)?;
    // Parents first: removing whiteouts leaves them the times that this gives them.
    unsettled.parents.iter().try_for_each(|path| applying.view.confirm(path))?;
    unsettled.whiteouts.iter().try_for_each(|path| applying.settle_whiteout(path))?;
    applying.finish(false).map(drop)
}

/// Says which entry an error came from, once.
fn name_entry(entry: &Entry, err: Error) -> Error {
    if err.message().starts_with("layer entry ") {
        return err;
    }
    let class = match entry_errno(&err) {
        // Two entries the file system cannot hold together, or names it cannot.
        Some(Errno::EXIST | Errno::NOTDIR | Errno::ISDIR | Errno::NAMETOOLONG | Errno::LOOP) => {
            Class::InvalidArgument
        }
        _ => err.class(),
    };
    Error::new(class, entry.bad(err.message()).message())
}

fn entry_errno(err: &Error) -> Option<Errno> {
    let io = std::error::Error::source(err)?.downcast_ref::<std::io::Error>()?;
    io.raw_os_error().map(Errno::from_raw_os_error)
}

/// The state of one layer being applied.
struct Applying {
    view: View,
    limits: Limits,
    written: Written,
    entries: u64,
    devices: u64,
    total_bytes: u64,
    unsettled: Unsettled,
}

impl Applying {
    fn open(root: &Path, options: &ApplyOptions) -> Result<Self> {
        let limits = options.limits.clone();
        let mut lowers: &[PathBuf] = &[];
        let mut overlay = None;
        if let Target::OverlayUpper { userxattr } = options.target {
            let opaque = if userxattr { "user.overlay.opaque" } else { "trusted.overlay.opaque" };
            let lowers_unknown = match &options.lowers {
                Lowers::Known(known) => {
                    lowers = known;
                    false
                }
                Lowers::Unknown => true,
            };
            overlay = Some(Overlay { opaque, lowers_unknown });
        }
        let view = View::open(root, lowers, overlay, limits.symlink_count_max)?;
        Ok(Self {
            view,
            limits,
            written: Written::default(),
            entries: 0,
            devices: 0,
            total_bytes: 0,
            unsettled: Unsettled::default(),
        })
    }

    fn finish(self, sync: bool) -> Result<(u64, Unsettled)> {
        self.view.making.wait()?;
        self.view.finish_times()?;
        if sync {
            rustix::fs::syncfs(self.view.root_fd())
                .map_err(|e| Error::io("sync the file system of the layer", e.into()))?;
        }
        let unsettled = Unsettled { parents: self.view.assumed, ..self.unsettled };
        Ok((self.entries, unsettled))
    }

    fn entry<R: BufRead>(&mut self, entry: &Entry, archive: &mut Archive<R>) -> Result<()> {
        self.entries += 1;
        let names = clean(&entry.path)?;
        let Some((&name, parents)) = names.split_last() else {
            debug!("entry for the root of the layer passed by");
            return Ok(());
        };
        if is_aufs_private(name) || parents.iter().any(|p| is_aufs_private(p)) {
            debug!(name = %String::from_utf8_lossy(&entry.path), "aufs' own entry passed by");
            return Ok(());
        }
        if parents.iter().any(|p| p.starts_with(WHITEOUT_PREFIX.as_bytes())) {
            return Err(entry.bad("lies in a directory whose name is kept for whiteouts"));
        }
        if name == WHITEOUT_OPAQUE.as_bytes() {
            return self.opaque(parents);
        }
        if let Some(victim) = name.strip_prefix(WHITEOUT_PREFIX.as_bytes()) {
            if matches!(victim, b"" | b"." | b"..") {
                return Err(entry.bad("is a whiteout of no name"));
            }
            return self.whiteout(parents, victim);
        }
        let Some(parent) = self.view.enter(parents, Missing::Create)? else {
            return Err(Error::internal("a missing parent was not created"));
        };
        let path = child_path(&parent, name)?;
        match entry.kind {
            Kind::Dir => self.dir(entry, &parent, name, &path)?,
            Kind::Hardlink => self.hardlink(entry, &parent, name, &path)?,
            Kind::File => self.file(entry, archive, &parent, name, &path)?,
            Kind::Symlink => self.symlink(entry, &parent, name, &path)?,
            _ => self.device(entry, &parent, name, &path)?,
        }
        self.written.insert(path);
        Ok(())
    }

    /// Has `make` make something that is no directory at `name`, in the place of what is there;
    /// returns the parent, writable, too. Most names are free: nothing is asked before.
    fn put<T>(
        &mut self,
        parent: &Rc<Dir>,
        name: &[u8],
        make: impl Fn(&OwnedFd) -> rustix::io::Result<T>,
    ) -> Result<(Rc<Dir>, rustix::io::Result<T>)> {
        let parent = self.view.writable(parent)?;
        self.view.making.wait_for(|| parent.path.join(os(name)))?;
        match make(parent.fd()?) {
            Err(Errno::EXIST) => {
                let parent = self.make_room(&parent, name)?;
                let made = make(parent.fd()?);
                Ok((parent, made))
            }
            made => {
                self.hide_below(&parent, name)?;
                Ok((parent, made))
            }
        }
    }

    /// Makes the tree written free of `name`; returns the parent, writable.
    fn make_room(&mut self, parent: &Rc<Dir>, name: &[u8]) -> Result<Rc<Dir>> {
        let parent = self.view.writable(parent)?;
        if self.view.stat(0, &parent, name)?.is_some() {
            remove::all(&mut self.view, &mut self.written, &parent, name)?;
        }
        self.hide_below(&parent, name)?;
        Ok(parent)
    }

    /// Forgets a directory that a lower tree may have at `name`: something hides it now.
    fn hide_below(&mut self, parent: &Dir, name: &[u8]) -> Result<()> {
        if parent.merges() {
            self.view.forget(&child_path(parent, name)?);
        }
        Ok(())
    }

    fn dir(&mut self, entry: &Entry, parent: &Rc<Dir>, name: &[u8], path: &Path) -> Result<()> {
        let parent = self.view.writable(parent)?;
        let found = self.view.lookup(&parent, name)?;
        let dir = match found {
            Some(node) if node.is_dir() && node.layer == 0 => {
                let dir = self.view.reopen(path)?;
                attrs::drop_stale_xattrs(dir.fd()?.as_fd(), &entry.xattrs, path)?;
                dir
            }
            Some(node) if node.is_dir() => {
                self.view.forget(path);
                self.view.make_dir(&parent, name, false)?
            }
            _ => {
                // Whatever the tree written holds here (a whiteout, a file of this very layer)
                // hides what is below; the new directory must go on hiding it.
                let hides = self.view.stat(0, &parent, name)?.is_some();
                let parent = self.make_room(&parent, name)?;
                let opaque = hides && self.may_show_dir(&parent, name)?;
                self.view.make_dir(&parent, name, opaque)?
            }
        };
        self.view.assumed.remove(path);
        let gives_acls = attrs::say_default_acl(&entry.xattrs);
        if gives_acls {
            // To what comes later, and not to what is about to be made.
            self.view.making.wait()?;
        }
        attributes(entry, None).set_on_fd(dir.fd()?.as_fd(), path)?;
        dir.gives_acls.set(gives_acls);
        self.view.times.insert(path.to_owned(), Some(entry.mtime));
        Ok(())
    }

    /// Whether a directory of a lower tree would show through one made at `name`.
    fn may_show_dir(&self, parent: &Dir, name: &[u8]) -> Result<bool> {
        match self.view.overlay() {
            None => Ok(false),
            Some(o) if o.lowers_unknown => Ok(true),
            Some(_) => Ok(self.view.lookup_below(parent, name)?.is_some_and(|n| n.is_dir())),
        }
    }

    fn file<R: BufRead>(
        &mut self,
        entry: &Entry,
        archive: &mut Archive<R>,
        parent: &Rc<Dir>,
        name: &[u8],
        path: &Path,
    ) -> Result<()> {
        self.total_bytes = self.total_bytes.saturating_add(entry.file_size());
        if self.total_bytes > self.limits.total_bytes_max {
            let max = self.limits.total_bytes_max;
            return Err(entry.bad(format!("makes the files of the layer over {max} bytes")));
        }
        let parent = self.view.writable(parent)?;
        if self.view.making.takes(entry)
            && !parent.gives_acls.get()
            && !self.written.holds_at_or_under(path)
        {
            return self.hand_over(entry, archive, &parent, name, path);
        }
        let (parent, fd) = self.put(&parent, name, |dir| create(dir, name, entry))?;
        let mut file = File::from(fd.map_err(|e| failed("create", path, e))?);
        parent.disinherit(name)?;
        let written = |e: std::io::Error| write_failed(path, e);
        match &entry.sparse {
            None => {
                let (mut end, mut writeback) = (0, Writeback::default());
                archive.content(entry.size, |piece| {
                    file.write_all(piece).map_err(written)?;
                    end += piece.len() as u64;
                    writeback.wrote(&file, end);
                    Ok(())
                })?;
                if end >= WRITEBACK_BYTES_MIN {
                    writeback.start(&file, end);
                }
            }
            Some(sparse) => {
                file.set_len(sparse.size).map_err(written)?;
                for &(offset, length) in &sparse.map {
                    let mut at = offset;
                    archive.content(length, |piece| {
                        file.write_all_at(piece, at).map_err(written)?;
                        at += piece.len() as u64;
                        Ok(())
                    })?;
                }
            }
        }
        attributes(entry, Some(entry)).set_on_fd(file.as_fd(), path)
    }

    /// Reads a small file whose name is free, and has it made.
    fn hand_over<R: BufRead>(
        &mut self,
        entry: &Entry,
        archive: &mut Archive<R>,
        parent: &Dir,
        name: &[u8],
        path: &Path,
    ) -> Result<()> {
        let mut data = Vec::with_capacity(usize::try_from(entry.size).unwrap_or(0));
        archive.content(entry.size, |piece| {
            data.extend_from_slice(piece);
            Ok(())
        })?;
        self.hide_below(parent, name)?;
        let (name, path, entry) = (name.to_vec(), path.to_owned(), entry.clone());
        let job = Job { dir: Arc::clone(parent.fd()?), name, path, entry, data };
        self.view.making.make(job)
    }

    fn symlink(&mut self, entry: &Entry, parent: &Rc<Dir>, name: &[u8], path: &Path) -> Result<()> {
        if entry.link.is_empty() {
            return Err(entry.bad("symlink has no target"));
        }
        let link = os(&entry.link);
        let (parent, made) = self.put(parent, name, |dir| symlinkat(link, dir, os(name)))?;
        made.map_err(|e| failed("make symlink", path, e))?;
        attributes(entry, Some(entry)).set_at(parent.fd()?.as_fd(), name, FileType::Symlink, path)
    }

    fn device(&mut self, entry: &Entry, parent: &Rc<Dir>, name: &[u8], path: &Path) -> Result<()> {
        let file_type = match entry.kind {
            Kind::Char => FileType::CharacterDevice,
            Kind::Block => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let (major, minor) = entry.device;
        let mut device = makedev(major, minor);
        if file_type == FileType::Fifo {
            device = 0;
        } else {
            self.devices += 1;
            if self.devices > self.limits.device_count_max {
                let max = self.limits.device_count_max;
                return Err(entry.bad(format!("is one device too many, at most {max} allowed")));
            }
            if file_type == FileType::CharacterDevice && device == 0 {
                return Err(entry.bad("is character device 0/0, overlayfs' mark of a deletion"));
            }
        }
        let mode = Mode::from_raw_mode(0o600);
        let make = |dir: &OwnedFd| mknodat(dir, os(name), file_type, mode, device);
        let (parent, made) = self.put(parent, name, make)?;
        match made {
            Ok(()) => {}
            // Nobody may make devices in a user namespace; containers get theirs mounted.
            Err(Errno::PERM) if file_type != FileType::Fifo => {
                warn!(path = %path.display(), "device node left out: not permitted");
                return Ok(());
            }
            Err(err) => return Err(failed("make device", path, err)),
        }
        parent.disinherit(name)?;
        attributes(entry, Some(entry)).set_at(parent.fd()?.as_fd(), name, file_type, path)
    }

    fn hardlink(
        &mut self,
        entry: &Entry,
        parent: &Rc<Dir>,
        name: &[u8],
        path: &Path,
    ) -> Result<()> {
        let missing =
            || entry.bad(format!("hard link target {:?} does not exist", os(&entry.link)));
        let target = clean(&entry.link)?;
        let Some((&target_name, target_parents)) = target.split_last() else {
            return Err(entry.bad("hard link target is not a file"));
        };
        let unknown = self.view.overlay().is_some_and(|o| o.lowers_unknown);
        let lowers_needed = || needs_lowers(Path::new(os(&entry.link)), "a hard link target");
        let Some(from) = self.view.enter(target_parents, Missing::Tell)? else {
            return Err(if unknown { lowers_needed() } else { missing() });
        };
        if child_path(&from, target_name)? == *path {
            // A link to itself: nothing to do, if it is there.
            return self.view.lookup(&from, target_name)?.map(drop).ok_or_else(missing);
        }
        let Some(node) = self.view.lookup(&from, target_name)? else {
            return Err(if unknown { lowers_needed() } else { missing() });
        };
        if node.is_dir() {
            return Err(entry.bad("hard link target is a directory"));
        }
        let from = self.linkable(&from, target_name, &node)?;
        let from_path = from.path.clone();
        let parent = self.make_room(parent, name)?;
        // Making room may have removed what was to be linked, or moved handles.
        let from = self.view.find(&from_path)?.ok_or_else(missing)?;
        let linked = linkat(from.fd()?, os(target_name), parent.fd()?, os(name), AtFlags::empty());
        match linked {
            Ok(()) => Ok(()),
            Err(Errno::NOENT) => Err(missing()),
            Err(err) => Err(failed("link", path, err)),
        }
    }

    /// The directory of a link's target, with the target in the tree written.
    fn linkable(&mut self, from: &Rc<Dir>, name: &[u8], node: &Node) -> Result<Rc<Dir>> {
        if node.layer == 0 {
            return Ok(Rc::clone(from));
        }
        copyup::file(&mut self.view, from, name, node)
    }
}

/// The attributes of an entry; the time only where `timed` (directories get theirs last).
fn attributes<'a>(entry: &'a Entry, timed: Option<&Entry>) -> Attributes<'a> {
    Attributes {
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        xattrs: &entry.xattrs,
        mtime: timed.map(|e| e.mtime),
    }
}

/// The names of a path from an archive, `.` and `..` worked out as text. A leading slash is the
/// root of the layer.
///
/// # Errors
/// InvalidArgument when the path climbs out of the layer.
fn clean(path: &[u8]) -> Result<Vec<&[u8]>> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                if names.pop().is_none() {
                    let shown = String::from_utf8_lossy(path);
                    return Err(Error::invalid_argument(format!("path {shown:?} climbs out")));
                }
            }
            name => names.push(name),
        }
    }
    Ok(names)
}

/// Whether a name is bookkeeping of aufs, which very old layers contain.
fn is_aufs_private(name: &[u8]) -> bool {
    name.starts_with(b".wh..wh.") && name != WHITEOUT_OPAQUE.as_bytes()
}

/// Creates the file of an entry; without the set-id bits, which come with the owner. Nobody but its
/// maker reaches it yet.
fn create(dir: &OwnedFd, name: &[u8], entry: &Entry) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, os(name), flags, Mode::from_raw_mode(entry.mode & 0o777))
}

fn write_failed(path: &Path, err: std::io::Error) -> Error {
    Error::io(format!("write {path:?}"), err)
}

fn failed(what: &str, path: &Path, err: Errno) -> Error {
    Error::io(format!("{what} {path:?}"), err.into())
}
