//! Verifying trees, making damaged ones again, and finding directories without a record.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_mount::{Mount, MountInfo};
use gantry_sys::durable;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::{Engine, Layout, Shared, Snapshot, summary, to_the_end};
use crate::{Kind, Layer, Remade, Stray, Upkeep, Verdict};

#[async_trait]
impl<L: Layout> Upkeep for Engine<L> {
    async fn layers(&self) -> Result<Vec<Layer>> {
        let mut layers = Vec::new();
        self.0.records.walk(&mut |snapshot| {
            if snapshot.info.kind == Kind::Committed {
                layers.push(self.as_layer(snapshot));
            }
            Ok(())
        })?;
        layers.sort_by(|a, b| (a.depth, &a.name).cmp(&(b.depth, &b.name)));
        Ok(layers)
    }

    async fn layer(&self, name: &str) -> Result<Layer> {
        Ok(self.as_layer(self.committed(name)?))
    }

    async fn mounts(&self, name: &str) -> Result<Vec<Mount>> {
        let layer = self.committed(name)?;
        self.0.check_whole(Some(&layer))?;
        // As a view on top of it, with a number of its own that no directory has.
        let mut view = layer.clone();
        view.id = self.0.next_id.fetch_add(1, Ordering::Relaxed);
        view.parents = layer.as_parents();
        view.info.kind = Kind::View;
        view.info.labels.clear();
        self.mounts_of(view).await
    }

    async fn verify(&self, name: &str) -> Result<Verdict> {
        let snapshot = self.committed(name)?;
        let id = snapshot.id;
        let verdict = self.blocking(move |s| s.verify(&snapshot)).await?;
        // It may have been removed while it was looked at.
        if self.committed(name)?.id != id {
            return Err(Error::not_found(format!("snapshot {name:?}")));
        }
        match &verdict {
            Verdict::Damaged(_) => self.0.damaged.insert(id),
            Verdict::Whole => self.0.damaged.remove(id),
            Verdict::Unknown => {}
        }
        Ok(verdict)
    }

    async fn remake(&self, name: &str) -> Result<Remade> {
        let snapshot = self.committed(name)?;
        if self.0.damaged.any_of(&snapshot.parents) {
            return Err(Error::failed_precondition(format!(
                "snapshot {name:?}: a layer below it is damaged too"
            )));
        }
        let (engine, name) = (self.clone(), name.to_owned());
        to_the_end(async move {
            let id = engine.0.next_id.fetch_add(1, Ordering::Relaxed);
            engine.0.making.insert(id);
            let parent = snapshot.parents.first().copied();
            let (old, labels) = (snapshot.id, snapshot.info.labels.clone());
            let made = engine
                .blocking(move |s| {
                    s.check_unmounted(old)?;
                    s.make_dir(id, parent, &labels)
                })
                .await;
            if let Err(err) = made {
                engine.0.making.remove(id);
                return Err(err);
            }
            let mut active = snapshot;
            active.id = id;
            active.info.kind = Kind::Active;
            match engine.mounts_of(active).await {
                Ok(mounts) => Ok(Remade { mounts, id, name }),
                Err(err) => {
                    engine.drop_remade(id).await;
                    Err(err)
                }
            }
        })
        .await
    }

    async fn replace(&self, remade: Remade) -> Result<()> {
        let engine = self.clone();
        to_the_end(async move {
            let Remade { id, name, .. } = remade;
            let replaced = engine.replace_now(id, &name).await;
            match replaced {
                // Whoever mounted it a moment ago may see the old tree: it stays until the next
                // start, and so does its number among those in use.
                Ok(true) => {}
                Ok(false) | Err(_) => engine.drop_remade(id).await,
            }
            replaced.map(drop)
        })
        .await
    }

    async fn discard(&self, remade: Remade) {
        self.drop_remade(remade.id).await;
    }

    async fn give_up(&self, name: &str) -> Result<Vec<String>> {
        let snapshot = self.committed(name)?;
        if !self.0.damaged.any_of(&[snapshot.id]) {
            return Err(Error::failed_precondition(format!("snapshot {name:?} is not damaged")));
        }
        let mut useless = vec![snapshot.clone()];
        let mut held = None;
        self.0.records.walk(&mut |other| {
            if other.parents.contains(&snapshot.id) {
                if other.info.kind != Kind::Committed {
                    held = Some(other.info.name.clone());
                }
                useless.push(other);
            }
            Ok(())
        })?;
        if let Some(holder) = held {
            return Err(Error::failed_precondition(format!(
                "snapshot {name:?} cannot be removed: {holder:?} is on top of it"
            )));
        }
        let names = useless.iter().map(|s| s.info.name.clone()).collect();
        self.blocking(move |s| {
            gantry_failpoint::hit("snapshot.give-up")
                .context(|| "snapshots given up".to_owned())?;
            let ids: Vec<u64> = useless.iter().map(|s| s.id).collect();
            s.records.forget(useless)?;
            for id in ids {
                s.discard(id);
                s.damaged.remove(id);
            }
            Ok(())
        })
        .await?;
        Ok(names)
    }

    async fn strays(&self) -> Result<Vec<Stray>> {
        self.blocking(Shared::strays).await
    }

    async fn remove_stray(&self, stray: &Stray) -> Result<bool> {
        let id = stray.id;
        self.blocking(move |s| {
            if !s.strays()?.iter().any(|found| found.id == id) {
                return Ok(false);
            }
            if id == REMOVED {
                return s.trash.empty().map(|()| true);
            }
            s.discard(id);
            Ok(true)
        })
        .await
    }
}

/// The number of what was removed already and waits for its space to be freed.
const REMOVED: u64 = 0;

impl<L: Layout> Engine<L> {
    fn as_layer(&self, snapshot: Snapshot) -> Layer {
        Layer {
            damaged: self.0.damaged.any_of(&[snapshot.id]),
            name: snapshot.info.name,
            parent: snapshot.info.parent,
            committed: snapshot.info.created,
            origin: snapshot.origin,
            depth: snapshot.parents.len(),
        }
    }

    fn committed(&self, name: &str) -> Result<Snapshot> {
        let snapshot = self.0.records.get(name)?;
        if snapshot.info.kind != Kind::Committed {
            return Err(Error::failed_precondition(format!("snapshot {name:?} is not committed")));
        }
        Ok(snapshot)
    }

    /// Puts the tree `id` in the place of the one of the layer `name`. True when the old one may
    /// be in use.
    async fn replace_now(&self, id: u64, name: &str) -> Result<bool> {
        let snapshot = self.committed(name)?;
        let (old, parent) = (snapshot.id, snapshot.parents.first().copied());
        let measured = self.blocking(move |s| s.make_durable(id, parent)).await?;
        let in_use = self.blocking(move |s| s.exchange(old, id)).await?;
        self.0.records.remade(name.to_owned(), old, measured).await?;
        self.0.damaged.remove(old);
        self.blocking(move |s| s.settled(old)).await?;
        Ok(in_use)
    }

    async fn drop_remade(&self, id: u64) {
        // Only warns by itself.
        let _ = self.blocking(move |s| s.discarded(id)).await;
        self.0.making.remove(id);
    }
}

impl<L: Layout> Shared<L> {
    fn verify(&self, snapshot: &Snapshot) -> Result<Verdict> {
        let tree = self.layout.kept(&self.dirs.at(snapshot.id));
        let found = match summary::of_tree(&tree) {
            Ok((_, found)) => found,
            Err(err) if is_damage(&err) => {
                return Ok(Verdict::Damaged(format!("{}: {err}", tree.display())));
            }
            Err(err) => return Err(Error::io(tree.display(), err)),
        };
        Ok(match snapshot.summary.map(|committed| committed.difference(&found)) {
            None => Verdict::Unknown,
            Some(None) => Verdict::Whole,
            Some(Some(how)) => Verdict::Damaged(format!("{}: {how}", tree.display())),
        })
    }

    /// Exchanges the directories of two numbers, durably; true when the first is mounted
    /// afterwards.
    fn exchange(&self, old: u64, new: u64) -> Result<bool> {
        self.check_unmounted(old)?;
        self.layout.release(&self.dirs.at(old))?;
        let (old_dir, new_dir) = (self.dirs.at(old), self.dirs.at(new));
        let what = || format!("exchange {} and {}", old_dir.display(), new_dir.display());
        gantry_failpoint::hit("snapshot.exchange").context(what)?;
        match renameat_with(CWD, &new_dir, CWD, &old_dir, RenameFlags::EXCHANGE) {
            Err(Errno::NOENT) => std::fs::rename(&new_dir, &old_dir).context(what)?,
            done => done.map_err(io::Error::from).context(what)?,
        }
        gantry_failpoint::hit("snapshot.exchanged").context(what)?;
        durable::sync_dir(&self.dirs.0).context(what)?;
        Ok(self.check_unmounted(old).is_err())
    }

    /// # Errors
    /// FailedPrecondition while anything of the snapshot is part of a mount that is not our own.
    fn check_unmounted(&self, id: u64) -> Result<()> {
        let dir = self.dirs.at(id);
        let mounts = gantry_mount::mountinfo()?;
        let here = within_filesystem(&mounts, &dir);
        for mount in mounts.iter().filter(|m| !m.mount_point.starts_with(&dir)) {
            let bound = is_within(&mount.root, &dir)
                || here.as_ref().is_some_and(|(device, path)| {
                    mount.device == *device && mount.root.starts_with(path)
                });
            let image = Path::new(&mount.source).starts_with(&dir);
            if bound || image || names_dir(&mount.super_options, &self.dirs.0, &dir) {
                return Err(Error::failed_precondition(format!(
                    "{} is in use by the mount at {}",
                    dir.display(),
                    mount.mount_point.display()
                )));
            }
        }
        Ok(())
    }

    fn strays(&self) -> Result<Vec<Stray>> {
        // In this order: a directory that has no record by the last look, and nobody to make one
        // by the look before, will never have one.
        let found = self.list()?;
        let making = self.making.set().clone();
        let mut known = HashSet::new();
        self.records.walk(&mut |snapshot| {
            known.insert(snapshot.id);
            Ok(())
        })?;
        let floor = self.records.floor(0)?;
        let mut strays: Vec<Stray> = found
            .into_iter()
            .filter(|(_, id)| *id > floor && !known.contains(id) && !making.contains(id))
            .map(|(path, id)| Stray {
                path: path.display().to_string(),
                reason: "no record names this directory: a crash came between the two".to_owned(),
                id,
            })
            .collect();
        if !self.trash.is_busy() && self.trash.has_any()? {
            strays.push(Stray {
                path: self.dirs.0.display().to_string(),
                reason: "removed snapshots whose space could not be freed".to_owned(),
                id: REMOVED,
            });
        }
        strays.sort();
        Ok(strays)
    }
}

/// Whether an error of reading a tree says that the tree is bad, and not the moment.
fn is_damage(err: &io::Error) -> bool {
    let errno = Errno::from_io_error(err);
    matches!(errno, Some(Errno::NOENT | Errno::NOTDIR | Errno::IO | Errno::UCLEAN | Errno::LOOP))
}

/// Where `dir` is on its filesystem, and the filesystem's device.
fn within_filesystem(mounts: &[MountInfo], dir: &Path) -> Option<(String, PathBuf)> {
    let deepest = |m: &&MountInfo| m.mount_point.components().count();
    // Of mounts stacked at one place the last is seen.
    let on = mounts.iter().filter(|m| dir.starts_with(&m.mount_point)).max_by_key(deepest)?;
    let below = dir.strip_prefix(&on.mount_point).ok()?;
    Some((on.device.clone(), on.root.join(below)))
}

/// Whether the root of a mount, a path on its filesystem, can be in `dir`: for mounts made where
/// the filesystem is mounted elsewhere, the last names must do.
fn is_within(root: &Path, dir: &Path) -> bool {
    const NAMES: usize = 3;
    let names: Vec<_> = dir.components().rev().take(NAMES).collect();
    let root: Vec<_> = root.components().rev().collect();
    root.windows(names.len()).any(|window| window == names.as_slice())
}

/// Whether the options of a mount name what is in `dir`, by its path or relative to `dirs`.
fn names_dir(options: &str, dirs: &Path, dir: &Path) -> bool {
    options.split([',', ':', '=']).any(|word| {
        let path = Path::new(word);
        !word.is_empty() && (path.starts_with(dir) || dirs.join(path).starts_with(dir))
    })
}
