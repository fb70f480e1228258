//! Making disk and records agree again, at start-up.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use gantry_errdefs::{Error, Result, ResultExt as _};

use super::records::Records;
use super::trash::Trash;
use super::{Dirs, Layout, Shared, Snapshot, has_dir};
use crate::Kind;

/// Checks, when there is no directory of snapshots at all, that the records expect none: more
/// likely a filesystem is not mounted than all of it lost.
pub(super) fn check_unused(records: &Records, dirs: &Dirs) -> Result<()> {
    let mut count = 0_u64;
    records.walk(&mut |snapshot| {
        count += u64::from(needs_dir(&snapshot));
        Ok(())
    })?;
    if count > 0 {
        return Err(Error::data_loss(format!(
            "{} is missing, the database names {count} snapshots in it; nothing changed",
            dirs.0.display()
        )));
    }
    Ok(())
}

fn needs_dir(snapshot: &Snapshot) -> bool {
    has_dir(snapshot.info.kind, !snapshot.parents.is_empty())
}

impl<L: Layout> Shared<L> {
    /// Removes directories without a record and committed snapshots without a directory, and makes
    /// empty directories for active snapshots that lost theirs.
    pub(super) fn reconcile(&self) -> Result<()> {
        let mut recorded = Vec::new();
        self.records.walk(&mut |snapshot| {
            recorded.push(snapshot);
            Ok(())
        })?;
        let known: HashSet<u64> = recorded.iter().map(|s| s.id).collect();
        let found = self.list()?;
        let last = found.iter().map(|(_, id)| *id).chain(known.iter().copied()).max().unwrap_or(0);
        self.next_id.store(last + 1, Ordering::Relaxed);
        let floor = self.records.floor(last)?;
        let mut on_disk = HashSet::new();
        let mut strange = 0;
        for (path, id) in found {
            // The tree is the last that is made.
            let made = || self.layout.tree(&path).exists() || self.layout.kept(&path).exists();
            if known.contains(&id) && made() {
                on_disk.insert(id);
            } else if id <= floor {
                strange += 1;
            } else {
                tracing::info!(path = %path.display(), "removing a snapshot half made or removed");
                self.discard(id);
            }
        }
        if strange > 0 {
            let dir = self.dirs.0.display();
            tracing::warn!(%dir, count = strange, "snapshots of another daemon are left alone");
        }
        let lost: HashSet<u64> = recorded
            .iter()
            .filter(|s| needs_dir(s) && !on_disk.contains(&s.id))
            .map(|s| s.id)
            .collect();
        for done in recorded.iter().filter(|s| s.info.kind == Kind::Committed) {
            if on_disk.contains(&done.id) {
                self.settled(done.id)?;
            }
        }
        if !lost.is_empty() {
            self.mend(&recorded, &lost)?;
        }
        self.trash.empty_soon()
    }

    /// Active snapshots get an empty directory again: what a power cut takes whole was never
    /// written to. Committed ones whose blob is known are marked, to be unpacked again (see
    /// [`crate::Upkeep`]). Others are removed, with the committed ones on top of them, so that
    /// pulling the image again brings them back; unless someone may still want what is on top.
    fn mend(&self, recorded: &[Snapshot], lost: &HashSet<u64>) -> Result<()> {
        let held: HashSet<u64> = recorded
            .iter()
            .filter(|s| s.info.kind != Kind::Committed)
            .flat_map(|s| s.parents.iter().copied())
            .collect();
        // Of a chain of layers either all can be unpacked again or none is of use.
        let hopeless: HashSet<u64> = recorded
            .iter()
            .filter(|s| lost.contains(&s.id) && s.origin.as_ref().is_none_or(|o| o.blob.is_none()))
            .map(|s| s.id)
            .collect();
        let can_come_back =
            |snapshot: &Snapshot| !snapshot.as_parents().iter().any(|id| hopeless.contains(id));
        let mut useless = Vec::new();
        for snapshot in recorded {
            let (name, id) = (&snapshot.info.name, snapshot.id);
            let broken = lost.contains(&id) || snapshot.parents.iter().any(|p| lost.contains(p));
            if !broken {
                continue;
            }
            if snapshot.info.kind == Kind::Committed && can_come_back(snapshot) {
                if lost.contains(&id) {
                    tracing::error!(name, id, "a layer lost its directory: to be unpacked again");
                    self.damaged.insert(id);
                }
                continue;
            }
            if snapshot.info.kind == Kind::Committed && held.contains(&id) {
                tracing::error!(
                    name,
                    id,
                    "a committed snapshot in use lost its directory, or a parent"
                );
            } else if snapshot.info.kind == Kind::Committed {
                tracing::error!(
                    name,
                    id,
                    "removing a committed snapshot that lost its directory, or a parent"
                );
                useless.push(snapshot);
            } else if lost.contains(&id) && !snapshot.parents.iter().any(|p| lost.contains(p)) {
                tracing::warn!(name, id, "snapshot directory made again, empty");
                self.make_dir(id, snapshot.parents.first().copied(), &snapshot.info.labels)
                    .context(|| format!("snapshot {name:?}"))?;
            }
        }
        if useless.is_empty() {
            return Ok(());
        }
        let ids: Vec<u64> = useless.iter().map(|s| s.id).collect();
        self.records.forget(useless.into_iter().cloned().collect())?;
        ids.into_iter().for_each(|id| self.discard(id));
        Ok(())
    }

    /// The directories of snapshots, with their numbers.
    pub(super) fn list(&self) -> Result<Vec<(PathBuf, u64)>> {
        let what = || self.dirs.0.display().to_string();
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.dirs.0).context(what)? {
            let entry = entry.context(what)?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            match name.parse() {
                Ok(id) => all.push((entry.path(), id)),
                Err(_) if Trash::owns(&name) => {}
                Err(_) => tracing::warn!(path = %entry.path().display(), "not ours, left alone"),
            }
        }
        Ok(all)
    }
}
