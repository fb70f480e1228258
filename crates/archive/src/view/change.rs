//! Changing the tree written: directories copied up, made, marked opaque.

use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use gantry_errdefs::{Error, Result};
use rustix::fs::{AtFlags, Mode, chmodat, fstat, mkdirat};

use super::{Dir, Node, View, child_path, is_whiteout, needs_lowers, os};
use crate::{attrs, copyup};

impl View {
    /// The same directory, surely present in the tree written: it and its parents are copied up
    /// (attributes, not children) where only trees below have them. Its time of modification is
    /// noted, to be given back at the end.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn writable(&mut self, dir: &Rc<Dir>) -> Result<Rc<Dir>> {
        if let Some(fd) = &dir.fd {
            if !dir.timed.get() && !self.times.contains_key(&dir.path) {
                let stat = fstat(fd).map_err(|e| Error::io(format!("{:?}", dir.path), e.into()))?;
                self.times.insert(dir.path.clone(), Some(attrs::mtime(&stat)));
            }
            dir.timed.set(true);
            return Ok(Rc::clone(dir));
        }
        let mut at = self.root()?;
        for name in dir.path.iter() {
            let next = self.reopen(&at.path.join(name))?;
            at = if next.fd.is_some() { next } else { self.copy_up_dir(&at, &next)? };
        }
        self.memo = None;
        Ok(at)
    }

    /// Makes directory `name` in a writable `dir`, which must not hold that name. `opaque` keeps
    /// what trees below have under the name out of it.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn make_dir(&mut self, dir: &Dir, name: &[u8], opaque: bool) -> Result<Rc<Dir>> {
        let path = child_path(dir, name)?;
        let below = if opaque { None } else { self.lookup_below(dir, name)? };
        mkdirat(dir.fd()?, os(name), Mode::from_raw_mode(0o755))
            .map_err(|e| Error::io(format!("make directory {path:?}"), e.into()))?;
        if dir.disinherit(name)? {
            chmodat(dir.fd()?, os(name), Mode::from_raw_mode(0o755), AtFlags::empty())
                .map_err(|e| Error::io(format!("set the mode of {path:?}"), e.into()))?;
        }
        let mut layers = vec![0];
        if let Some(node) = below.filter(Node::is_dir) {
            layers.extend(node.layers);
        }
        let made = self.open_dir(path, layers)?;
        if opaque {
            self.set_opaque(&made)?;
        }
        Ok(made)
    }

    /// Marks a writable directory as hiding everything below it, where that means something.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn set_opaque(&self, dir: &Dir) -> Result<()> {
        let Some(overlay) = self.overlay else { return Ok(()) };
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::fsetxattr(dir.fd()?, overlay.opaque, b"y", flags)
            .map_err(|e| Error::io(format!("mark {:?} opaque", dir.path), e.into()))
    }

    /// Gives directories their times. Nothing may be written afterwards.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn finish_times(&self) -> Result<()> {
        for (path, time) in &self.times {
            let Some(time) = time else { continue };
            let fd = self.open_read(0, path)?;
            attrs::set_mtime(fd.as_fd(), *time)
                .map_err(|e| Error::io(format!("set the time of {path:?}"), e.into()))?;
        }
        Ok(())
    }

    pub(super) fn create_missing(&mut self, dir: &Rc<Dir>, name: &[u8]) -> Result<Rc<Dir>> {
        let unknown =
            self.overlay.is_some_and(|o| o.lowers_unknown) && !self.is_masked(dir, name)?;
        let dir = self.writable(dir)?;
        let hidden = self.clear_whiteout(&dir, name)?;
        let made = self.make_dir(&dir, name, hidden)?;
        self.times.insert(made.path.clone(), None);
        if unknown {
            self.assumed.insert(made.path.clone());
        }
        Ok(made)
    }

    /// Gives a directory that was assumed the attributes it has in the trees below, now that they
    /// are known.
    ///
    /// # Errors
    /// FailedPrecondition when it is no directory there; the file system's.
    pub(crate) fn confirm(&mut self, path: &Path) -> Result<()> {
        let Some(parent) = self.find(path.parent().unwrap_or(Path::new("")))? else {
            return Ok(());
        };
        let name = path.file_name().unwrap_or_default().as_bytes();
        let Some(node) = self.lookup_below(&parent, name)? else { return Ok(()) };
        if !node.is_dir() {
            return Err(needs_lowers(path, "a parent that is no directory"));
        }
        let made = self.reopen(path)?;
        copyup::dir_attributes(self, node.layer, &made, &node.stat)
    }

    /// Whether nothing below can show at `name`: a whiteout is there or `dir` is opaque.
    fn is_masked(&self, dir: &Dir, name: &[u8]) -> Result<bool> {
        Ok(self.stat(0, dir, name)?.is_some_and(|s| is_whiteout(&s))
            || self.is_opaque_upwards(&dir.path)?)
    }

    fn is_opaque_upwards(&self, path: &Path) -> Result<bool> {
        for at in path.ancestors() {
            if self.is_opaque(0, at)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes a whiteout at `name`, if one is there, and says whether it was.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn clear_whiteout(&self, dir: &Dir, name: &[u8]) -> Result<bool> {
        if self.overlay.is_none() || !self.stat(0, dir, name)?.is_some_and(|s| is_whiteout(&s)) {
            return Ok(false);
        }
        rustix::fs::unlinkat(dir.fd()?, os(name), AtFlags::empty())
            .map_err(|e| Error::io(format!("remove whiteout {:?}", os(name)), e.into()))?;
        Ok(true)
    }

    fn copy_up_dir(&mut self, parent: &Rc<Dir>, dir: &Dir) -> Result<Rc<Dir>> {
        self.making.forbid();
        let parent = self.writable(parent)?;
        let name = dir.path.file_name().unwrap_or_default().as_bytes();
        let layer = dir.layers.first().copied().unwrap_or(0);
        let stat = self.open_path(layer, &dir.path).and_then(fstat);
        let stat = stat.map_err(|e| Error::io(format!("{:?}", dir.path), e.into()))?;
        self.forget(&dir.path);
        let made = self.make_dir(&parent, name, false)?;
        copyup::dir_attributes(self, layer, &made, &stat)?;
        self.times.insert(made.path.clone(), Some(attrs::mtime(&stat)));
        Ok(made)
    }
}
