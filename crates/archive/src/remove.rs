//! Removing what a layer deletes or replaces.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use gantry_errdefs::{Error, Result};
use rustix::fs::{AtFlags, FileType, unlinkat};
use rustix::io::Errno;

use crate::view::{Dir, View, child_path, os};

/// Paths that the layer being applied has put there itself: whiteouts of the same layer never
/// reach them, whatever the order of entries.
///
/// Each is kept with its slashes as zeros, which no name holds: so what is under a path follows it
/// directly, and comparing costs no look at components.
#[derive(Debug, Default)]
pub(crate) struct Written(BTreeSet<Vec<u8>>);

impl Written {
    /// Notes a path.
    pub(crate) fn insert(&mut self, path: PathBuf) {
        self.0.insert(key(path));
    }

    /// Whether this layer wrote `path` or anything under it.
    pub(crate) fn holds_at_or_under(&self, path: &Path) -> bool {
        let key = key(path.to_path_buf());
        self.0.range(key.clone()..).next().is_some_and(|other| is_at_or_under(other, &key))
    }

    /// Forgets `path` and everything under it.
    fn remove_under(&mut self, path: &Path) {
        let key = key(path.to_path_buf());
        let from = self.0.range(key.clone()..);
        let under: Vec<_> = from.take_while(|other| is_at_or_under(other, &key)).cloned().collect();
        for path in under {
            self.0.remove(&path);
        }
    }
}

fn key(path: PathBuf) -> Vec<u8> {
    let mut key = path.into_os_string().into_vec();
    key.iter_mut().filter(|byte| **byte == b'/').for_each(|byte| *byte = 0);
    key
}

fn is_at_or_under(key: &[u8], top: &[u8]) -> bool {
    key.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest[0] == 0 || top.is_empty())
}

/// Removes `name`, with all that is under it, from the tree written.
///
/// # Errors
/// The file system's.
pub(crate) fn all(view: &mut View, written: &mut Written, dir: &Dir, name: &[u8]) -> Result<()> {
    let path = child_path(dir, name)?;
    view.making.wait()?;
    written.remove_under(&path);
    // It may be a symlink that the last path went through.
    view.forget_memo();
    match unlinkat(dir.fd()?, os(name), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // A directory: EISDIR, or EPERM from file systems that follow POSIX.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(err) => return Err(failed(&path, err)),
    }
    view.forget(&path);
    forget_under(&mut view.times, &path);
    view.assumed.retain(|p| !p.starts_with(&path));
    // Depth first without holding a handle a level: a path may have two thousand of them.
    let mut todo = vec![(path, false)];
    while let Some((path, emptied)) = todo.pop() {
        if emptied {
            remove_empty(view, &path)?;
            continue;
        }
        let subdirs = unlink_files(view, &path)?;
        todo.push((path, true));
        todo.extend(subdirs.into_iter().map(|p| (p, false)));
    }
    Ok(())
}

/// Removes from a writable directory what this layer did not write, at any depth.
///
/// # Errors
/// The file system's.
pub(crate) fn unwritten(view: &mut View, written: &mut Written, dir: &Dir) -> Result<()> {
    view.making.wait()?;
    let mut todo = vec![dir.path.clone()];
    while let Some(path) = todo.pop() {
        for (name, is_dir) in children(view, &path)? {
            let child = path.join(os(&name));
            if !written.holds_at_or_under(&child) {
                let parent = view.reopen(&path)?;
                all(view, written, &parent, &name)?;
            } else if is_dir {
                todo.push(child);
            }
        }
    }
    Ok(())
}

fn forget_under<V>(known: &mut BTreeMap<PathBuf, V>, path: &Path) {
    let under: Vec<PathBuf> = known
        .range(path.to_path_buf()..)
        .take_while(|(p, _)| p.starts_with(path))
        .map(|(p, _)| p.clone())
        .collect();
    for path in under {
        known.remove(&path);
    }
}

/// Unlinks everything in a directory but its subdirectories, which it returns.
fn unlink_files(view: &View, path: &Path) -> Result<Vec<PathBuf>> {
    let fd = view.open_read(0, path)?;
    let mut subdirs = Vec::new();
    for (name, is_dir) in children(view, path)? {
        if is_dir {
            subdirs.push(path.join(os(&name)));
        } else {
            unlinkat(&fd, os(&name), AtFlags::empty())
                .map_err(|e| failed(&path.join(os(&name)), e))?;
        }
    }
    Ok(subdirs)
}

fn remove_empty(view: &View, path: &Path) -> Result<()> {
    let parent = view.open_read(0, path.parent().unwrap_or(Path::new("")))?;
    let name = path.file_name().unwrap_or_default();
    unlinkat(&parent, name, AtFlags::REMOVEDIR).map_err(|e| failed(path, e))
}

/// Names in a directory of the tree written, and whether each is a directory.
fn children(view: &View, path: &Path) -> Result<Vec<(Vec<u8>, bool)>> {
    let fd = view.open_read(0, path)?;
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(fd.as_fd()).map_err(|e| failed(path, e))? {
        let entry = entry.map_err(|e| failed(path, e))?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let file_type = match entry.file_type() {
            FileType::Unknown => {
                let stat = rustix::fs::statat(&fd, os(name), AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|e| failed(&path.join(os(name)), e))?;
                FileType::from_raw_mode(stat.st_mode)
            }
            known => known,
        };
        names.push((name.to_vec(), file_type == FileType::Directory));
    }
    names.sort();
    Ok(names)
}

fn failed(path: &Path, err: Errno) -> Error {
    let shown = path.as_os_str().as_bytes().escape_ascii().to_string();
    Error::io(format!("remove \"{shown}\""), err.into())
}
