//! Applying what a layer deletes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use gantry_errdefs::Result;
use rustix::fs::{FileType, Mode, mknodat};

use super::{Applying, failed};
use crate::remove;
use crate::view::{Dir, Missing, child_path, is_whiteout, needs_lowers, os};

impl Applying {
    /// Applies `.wh.<name>`: deletes what older layers have under the name.
    pub(super) fn whiteout(&mut self, parents: &[&[u8]], name: &[u8]) -> Result<()> {
        let Some(parent) = self.enter_to_delete(parents)? else { return Ok(()) };
        let path = child_path(&parent, name)?;
        if self.written.holds_at_or_under(&path) {
            let Some(node) = self.view.lookup(&parent, name)? else { return Ok(()) };
            return if node.is_dir() { self.opaque_dir(&path) } else { Ok(()) };
        }
        let below = match self.view.overlay() {
            None => false,
            Some(overlay) => {
                overlay.lowers_unknown || self.view.lookup_below(&parent, name)?.is_some()
            }
        };
        if !below && self.view.stat(0, &parent, name)?.is_none() {
            return Ok(());
        }
        let parent = self.make_room(&parent, name)?;
        if below {
            self.view.making.forbid();
            let mode = Mode::from_raw_mode(0);
            mknodat(parent.fd()?, os(name), FileType::CharacterDevice, mode, 0)
                .map_err(|e| failed("make whiteout", &path, e))?;
            self.view.forget(&path);
            if self.view.overlay().is_some_and(|o| o.lowers_unknown) {
                self.unsettled.whiteouts.push(path);
            }
        }
        Ok(())
    }

    /// Removes a whiteout that turns out to hide nothing.
    pub(super) fn settle_whiteout(&mut self, path: &Path) -> Result<()> {
        let parent = self.view.find(path.parent().unwrap_or(Path::new("")))?;
        let Some(parent) = parent else { return Ok(()) };
        let name = path.file_name().unwrap_or_default().as_bytes();
        // The layer may have put something else in its place later on.
        let still = self.view.stat(0, &parent, name)?.is_some_and(|s| is_whiteout(&s));
        if !still || self.view.lookup_below(&parent, name)?.is_some() {
            return Ok(());
        }
        let parent = self.view.writable(&parent)?;
        self.view.clear_whiteout(&parent, name).map(drop)
    }

    /// Applies `.wh..wh..opq`: deletes all that older layers have in the directory.
    pub(super) fn opaque(&mut self, parents: &[&[u8]]) -> Result<()> {
        match self.enter_to_delete(parents)? {
            Some(dir) => self.opaque_dir(&dir.path.clone()),
            None => Ok(()),
        }
    }

    fn opaque_dir(&mut self, path: &Path) -> Result<()> {
        // What it hides keeps the attributes it has below, where the layer wrote into it before.
        if let Some(inside) = self.view.assumed.iter().find(|p| *p != path && p.starts_with(path)) {
            return Err(needs_lowers(inside, "a parent directory"));
        }
        let dir = self.view.reopen(path)?;
        let unknown = self.view.overlay().is_some_and(|o| o.lowers_unknown);
        let mark = self.view.overlay().is_some() && (unknown || dir.merges());
        let dir = self.view.writable(&dir)?;
        if mark {
            self.view.set_opaque(&dir)?;
        }
        remove::unwritten(&mut self.view, &mut self.written, &dir)?;
        self.view.forget(path);
        Ok(())
    }

    /// The directory something is to be deleted from; `None` when it does not exist, and with it
    /// what there is to delete.
    fn enter_to_delete(&mut self, parents: &[&[u8]]) -> Result<Option<Rc<Dir>>> {
        let found = self.view.enter(parents, Missing::Tell)?;
        if found.is_none() && self.view.overlay().is_some_and(|o| o.lowers_unknown) {
            let path: PathBuf = parents.iter().map(|p| OsStr::from_bytes(p)).collect();
            return Err(needs_lowers(&path, "the directory of a whiteout"));
        }
        Ok(found)
    }
}
