//! Copying what only a lower tree has into the tree written, as overlayfs does before a change.
//!
//! Needed in two places: parents of what a layer adds (their attributes must not change), and
//! files a layer makes hard links to.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use gantry_errdefs::{Error, Result, ResultExt};
use rustix::fs::{FileType, Mode, OFlags, Stat, makedev, mknodat, openat, symlinkat};

use crate::attrs;
use crate::view::{Dir, Node, View, os};

/// Gives a directory just made the attributes its counterpart in `layer` has.
///
/// # Errors
/// The file system's.
pub(crate) fn dir_attributes(view: &View, layer: usize, made: &Dir, stat: &Stat) -> Result<()> {
    let xattrs = view.xattrs(layer, &made.path)?;
    made.gives_acls.set(attrs::say_default_acl(&xattrs));
    attrs::of_stat(stat, &xattrs).set_on_fd(made.fd()?.as_fd(), &made.path)
}

/// Copies `node`, no directory, to the same name of the tree written. Returns the directory it is
/// in, writable.
///
/// # Errors
/// The file system's.
pub(crate) fn file(view: &mut View, dir: &Rc<Dir>, name: &[u8], node: &Node) -> Result<Rc<Dir>> {
    view.making.forbid();
    let dir = view.writable(dir)?;
    let path = dir.path.join(os(name));
    let xattrs = view.xattrs(node.layer, &path)?;
    let attributes = attrs::of_stat(&node.stat, &xattrs);
    let failed = |e: rustix::io::Errno| Error::io(format!("copy up {path:?}"), e.into());
    let file_type = node.file_type();
    match file_type {
        FileType::RegularFile => {
            let from = File::from(view.open_read(node.layer, &path)?);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let to = openat(dir.fd()?, os(name), flags, Mode::from_raw_mode(0o600));
            let to = File::from(to.map_err(failed)?);
            dir.disinherit(name)?;
            copy_content(&from, &to, &path)?;
            return attributes.set_on_fd(to.as_fd(), &path).map(|()| dir);
        }
        FileType::Symlink => {
            let target = view.read_link(node.layer, &path)?;
            symlinkat(os(&target), dir.fd()?, os(name)).map_err(failed)?;
        }
        _ => {
            let (major, minor) =
                (rustix::fs::major(node.stat.st_rdev), rustix::fs::minor(node.stat.st_rdev));
            let mode = Mode::from_raw_mode(0o600);
            mknodat(dir.fd()?, os(name), file_type, mode, makedev(major, minor)).map_err(failed)?;
            dir.disinherit(name)?;
        }
    }
    attributes.set_at(dir.fd()?.as_fd(), name, file_type, &path)?;
    Ok(dir)
}

/// Copies by sharing blocks where the file system can, in the kernel where it cannot.
fn copy_content(from: &File, to: &File, path: &Path) -> Result<()> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let (mut from, mut to) = (from, to);
    std::io::copy(&mut from, &mut to)
        .map(drop)
        .context(|| format!("copy up {:?}", path.as_os_str().as_bytes().escape_ascii().to_string()))
}
