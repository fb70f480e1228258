//! What snapshotters that keep one directory per snapshot have in common.
//!
//! # Layout
//! ```text
//! snapshots/<n>             a snapshot's directory; <n> never changes, commit included
//! snapshots/.removed-<n>    a removed snapshot's directory, on its way out
//! ```
//! The records are in the database ([`records`]); a record's number is its directory.
//!
//! # Order on disk
//! * **Prepare:** directory, then record. A crash between leaves a directory that no record
//!   names: start-up removes it. The directory is not synced unless it holds a copy of its parent:
//!   until someone writes to it there is nothing to lose, and start-up makes one again for a
//!   record whose directory a power cut took.
//! * **Commit:** the tree is synced ([`sync`]), then the record changes. Nothing is renamed.
//! * **Remove:** record, then directory: renamed to a `.removed-` name, from which a thread of low
//!   urgency frees the space ([`trash`]); start-up goes on where a crash ended it.
//!
//! # Cancellation
//! What changes disk and record runs in a task of its own to its end, so a caller that goes away
//! never leaves one without the other.

mod codec;
mod reconcile;
mod records;
mod summary;
mod sync;
mod trash;
mod upkeep;

use std::collections::HashSet;
use std::fs::{self, DirBuilder};
use std::future::Future;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use gantry_core::Labels;
use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_mount::Mount;
use gantry_store::Store;
use gantry_sys::durable;
use gantry_sys::tree::{self, Measure};
use rustix::io::Errno;

use crate::{CommitOptions, Info, Kind, Snapshotter, Upkeep, Usage};
pub(crate) use records::Snapshot;
use records::{New, Records};
use summary::Summary;
use sync::{SMALL_TREE_NAMES_MAX, TreeSync};
use trash::Trash;

/// What differs between the snapshotters.
pub(crate) trait Layout: Send + Sync + 'static {
    /// Whether a layer can be put on another parent at commit; not when it holds its parent's
    /// files itself.
    const REBASES: bool;

    /// Makes the directory `dir` of a new snapshot, its tree last. `parent` is the directory of
    /// the parent snapshot. What a failure leaves is removed by the caller.
    fn make(&self, dir: &Path, parent: Option<&Path>, labels: &Labels) -> Result<()> {
        fs::create_dir(dir).context(|| dir.display().to_string())?;
        gantry_failpoint::hit("snapshot.fill").context(|| dir.display().to_string())?;
        self.fill(dir, parent, labels)
    }

    /// Fills the new directory `dir`, its tree last, for those that do not make it themselves.
    fn fill(&self, dir: &Path, parent: Option<&Path>, labels: &Labels) -> Result<()>;

    /// Whether a new snapshot, with or without parent, is a copy: it has to be on disk before its
    /// record is, because after a power cut a half copied one looks like a whole one.
    fn copies(&self, has_parent: bool) -> bool {
        let _ = has_parent;
        false
    }

    /// The tree in `dir` that an active snapshot is written to.
    fn tree(&self, dir: &Path) -> PathBuf;

    /// What is kept in `dir` of a committed snapshot: a directory that is summed up and made
    /// durable.
    fn kept(&self, dir: &Path) -> PathBuf {
        self.tree(dir)
    }

    /// Disk use of the tree in `dir` alone, of whose parent's directory is `parent`; `whole` is
    /// what the tree takes with what it shares.
    ///
    /// # Errors
    /// The I/O error.
    fn own_use(&self, dir: &Path, parent: Option<&Path>, whole: Measure) -> io::Result<Measure> {
        let _ = (dir, parent);
        Ok(whole)
    }

    /// Turns the tree of an active snapshot into what is kept of it, before that is measured and
    /// made durable. May be done again, and the snapshot may stay active.
    fn seal(&self, dir: &Path) -> Result<()> {
        let _ = dir;
        Ok(())
    }

    /// Lets go of what a sealed snapshot needs no more, once it is recorded as committed. `drop`
    /// takes a path below `dir` and has it deleted.
    fn settle(&self, dir: &Path, drop: &dyn Fn(&Path) -> Result<()>) -> Result<()> {
        let _ = (dir, drop);
        Ok(())
    }

    /// Whether [`Layout::mounts`] asks or changes the system for this snapshot, so that it must not
    /// be called where others wait.
    fn mounts_block(&self, snapshot: &Snapshot) -> bool {
        let _ = snapshot;
        false
    }

    /// The mounts of an active snapshot or a view.
    fn mounts(&self, root: &Dirs, snapshot: &Snapshot) -> Result<Vec<Mount>>;

    /// Adds what the snapshotter tells about a snapshot by label.
    fn describe(&self, root: &Dirs, snapshot: &Snapshot, info: &mut Info);

    /// Takes away what the snapshotter itself has mounted below `dir`, which is about to go or to
    /// be replaced.
    fn release(&self, dir: &Path) -> Result<()> {
        let _ = dir;
        Ok(())
    }

    /// Takes away everything the snapshotter itself has mounted.
    fn close(&self, root: &Dirs) -> Result<()> {
        let _ = root;
        Ok(())
    }

    /// How a directory that has been a snapshot's is deleted.
    const REMOVE: fn(&Path) -> io::Result<()> = tree::remove;
}

/// Whether a snapshot of this kind, with or without parent, has a directory: a view shows that of
/// its parent.
pub(crate) fn has_dir(kind: Kind, has_parent: bool) -> bool {
    kind != Kind::View || !has_parent
}

/// The directories of snapshots.
#[derive(Debug)]
pub(crate) struct Dirs(PathBuf);

impl Dirs {
    /// The directory of snapshot `id`.
    pub(crate) fn at(&self, id: u64) -> PathBuf {
        self.0.join(id.to_string())
    }

    /// All of them, those of removed snapshots too.
    pub(crate) fn all(&self) -> Result<Vec<PathBuf>> {
        let what = || self.0.display().to_string();
        let entries = fs::read_dir(&self.0).context(what)?;
        entries.map(|entry| entry.map(|e| e.path()).context(what)).collect()
    }
}

/// A snapshotter with one directory per snapshot.
pub(crate) struct Engine<L>(Arc<Shared<L>>);

struct Shared<L> {
    layout: L,
    dirs: Dirs,
    records: Records,
    sync: TreeSync,
    trash: Arc<Trash>,
    next_id: AtomicU64,
    /// Whether `remove` frees the space itself.
    sync_remove: bool,
    /// Directories whose record is still to come.
    making: Numbers,
    /// Committed snapshots whose tree is not what it should be.
    damaged: Numbers,
}

impl<L> Clone for Engine<L> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<L: Layout> Engine<L> {
    /// Opens the snapshotter `name` at `root`, and makes disk and records agree again after a
    /// crash. Blocks.
    pub(crate) fn open(
        name: &str,
        root: &Path,
        layout: L,
        store: Arc<dyn Store>,
        sync_remove: bool,
    ) -> Result<Self> {
        let dirs = Dirs(root.join("snapshots"));
        let records = Records::new(store, name);
        let fresh = !dirs.0.exists();
        if fresh {
            reconcile::check_unused(&records, &dirs)?;
        }
        make_private(root)?;
        make_private(&dirs.0)?;
        if fresh {
            // Records will name what is in it: it must not be missing after a power cut.
            for dir in [Some(dirs.0.as_path()), Some(root), root.parent()].into_iter().flatten() {
                durable::sync_dir(dir).context(|| format!("sync {}", dir.display()))?;
            }
        }
        let sync = TreeSync::open(&dirs.0)?;
        let trash = Arc::new(Trash::new(&dirs.0, L::REMOVE));
        let next_id = AtomicU64::new(1);
        let (making, damaged) = Default::default();
        let shared =
            Shared { layout, dirs, records, sync, trash, next_id, sync_remove, making, damaged };
        shared.reconcile()?;
        Ok(Self(Arc::new(shared)))
    }

    pub(crate) fn layout(&self) -> &L {
        &self.0.layout
    }

    /// Runs file work on the blocking pool.
    async fn blocking<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Shared<L>) -> Result<T> + Send + 'static,
    {
        let shared = Arc::clone(&self.0);
        joined(tokio::task::spawn_blocking(move || work(&shared))).await
    }

    async fn create(
        &self,
        kind: Kind,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        records::check_name(key)?;
        let engine = self.clone();
        let (key, parent) = (key.to_owned(), parent.map(str::to_owned));
        to_the_end(async move {
            let new = New { kind, key, parent, labels };
            // Refused here, nothing is touched; the transaction asks again.
            let parent = engine.0.records.check_new(&new)?;
            engine.0.check_whole(parent.as_ref())?;
            let parent_id = parent.map(|p| p.id);
            let id = engine.0.next_id.fetch_add(1, Ordering::Relaxed);
            let _making = engine.0.making.hold(id);
            let has_dir = has_dir(kind, parent_id.is_some());
            if has_dir {
                let labels = new.labels.clone();
                engine.blocking(move |s| s.make_dir(id, parent_id, &labels)).await?;
            }
            match engine.0.records.create(id, new).await {
                Ok(snapshot) => {
                    let key = snapshot.info.name.clone();
                    let mounts = engine.mounts_of(snapshot).await;
                    if mounts.is_err() {
                        // Nobody has heard of it.
                        engine.take_away(key).await?;
                    }
                    mounts
                }
                Err(e) => {
                    if has_dir {
                        engine.blocking(move |s| s.discarded(id)).await?;
                    }
                    Err(e)
                }
            }
        })
        .await
    }

    /// Removes a record, and then what it names.
    async fn take_away(&self, key: String) -> Result<()> {
        let id = self.0.records.remove(key).await?;
        self.blocking(move |s| s.discarded(id)).await
    }

    async fn mounts_of(&self, snapshot: Snapshot) -> Result<Vec<Mount>> {
        if self.0.layout.mounts_block(&snapshot) {
            return self.blocking(move |s| s.layout.mounts(&s.dirs, &snapshot)).await;
        }
        self.0.layout.mounts(&self.0.dirs, &snapshot)
    }

    fn info(&self, snapshot: Snapshot) -> Info {
        let mut info = snapshot.info.clone();
        self.0.layout.describe(&self.0.dirs, &snapshot, &mut info);
        info
    }
}

#[async_trait]
impl<L: Layout> Snapshotter for Engine<L> {
    async fn stat(&self, key: &str) -> Result<Info> {
        Ok(self.info(self.0.records.get(key)?))
    }

    async fn update(&self, info: Info, fieldpaths: &[String]) -> Result<Info> {
        Ok(self.info(self.0.records.update(info, fieldpaths).await?))
    }

    async fn usage(&self, key: &str) -> Result<Usage> {
        let snapshot = self.0.records.get(key)?;
        if snapshot.info.kind != Kind::Active {
            return Ok(snapshot.usage);
        }
        self.blocking(move |s| s.measure(&snapshot)).await
    }

    async fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let snapshot = self.0.records.get(key)?;
        if snapshot.info.kind == Kind::Committed {
            return Err(Error::failed_precondition(format!(
                "snapshot {key:?}: a committed snapshot has no mounts"
            )));
        }
        self.mounts_of(snapshot).await
    }

    async fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        self.create(Kind::Active, key, parent, labels).await
    }

    async fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        self.create(Kind::View, key, parent, labels).await
    }

    async fn commit(&self, name: &str, key: &str, options: CommitOptions) -> Result<()> {
        records::check_name(name)?;
        let engine = self.clone();
        let (name, key) = (name.to_owned(), key.to_owned());
        to_the_end(async move {
            let records = &engine.0.records;
            let snapshot = records.check_commit(&name, &key, &options, L::REBASES)?;
            let (id, parent) = (snapshot.id, snapshot.parents.first().copied());
            let measured = engine.blocking(move |s| s.make_durable(id, parent)).await?;
            records.commit(name, key, options, L::REBASES, measured).await?;
            engine.blocking(move |s| s.settled(id)).await
        })
        .await
    }

    async fn remove(&self, key: &str) -> Result<()> {
        let engine = self.clone();
        let key = key.to_owned();
        to_the_end(async move { engine.take_away(key).await }).await
    }

    async fn walk(&self, visit: &mut (dyn FnMut(Info) -> Result<()> + Send)) -> Result<()> {
        self.0.records.walk(&mut |snapshot| visit(self.info(snapshot)))
    }

    async fn cleanup(&self) -> Result<()> {
        self.blocking(|s| s.trash.empty()).await
    }

    fn upkeep(&self) -> Option<&dyn Upkeep> {
        Some(self)
    }

    async fn close(&self) -> Result<()> {
        self.blocking(|s| s.layout.close(&s.dirs)).await
    }
}

impl<L: Layout> Shared<L> {
    /// Makes the directory of a new snapshot, whole or not at all.
    fn make_dir(&self, id: u64, parent: Option<u64>, labels: &Labels) -> Result<()> {
        let dir = self.dirs.at(id);
        let what = || dir.display().to_string();
        gantry_failpoint::hit("snapshot.mkdir").context(what)?;
        let parent = parent.map(|p| self.dirs.at(p));
        let made = self.layout.make(&dir, parent.as_deref(), labels).and_then(|()| {
            match self.layout.copies(parent.is_some()) {
                true => self.sync.sync_filesystem().context(|| format!("sync {}", dir.display())),
                false => self.sync_dirs(&dir),
            }
        });
        made.inspect_err(|_| self.discard(id))
    }

    /// Makes a new directory durable with its name, before there is a record of it. What is written
    /// below it later is as durable as its writer makes it.
    fn sync_dirs(&self, dir: &Path) -> Result<()> {
        gantry_failpoint::hit("snapshot.sync-dir")
            .and_then(|()| durable::sync_dir(dir))
            .and_then(|()| durable::sync_dir(&self.dirs.0))
            .context(|| format!("sync {}", dir.display()))
    }

    /// Takes a directory that no record names out of sight, and frees it or has it freed. What
    /// fails here is done by [`Snapshotter::cleanup`] or the next start, so it only warns.
    fn discard(&self, id: u64) {
        let dir = self.dirs.at(id);
        let taken = self.layout.release(&dir).and_then(|()| self.trash.take(&dir, id));
        let result = match taken {
            Ok(false) => return,
            Ok(true) if self.sync_remove => self.trash.empty(),
            Ok(true) => self.trash.empty_soon(),
            Err(err) => Err(err),
        };
        if let Err(err) = result {
            tracing::warn!(path = %dir.display(), %err, "snapshot directory not removed yet");
        }
    }

    fn discarded(&self, id: u64) -> Result<()> {
        self.discard(id);
        Ok(())
    }

    /// Disk use of an active snapshot.
    fn measure(&self, snapshot: &Snapshot) -> Result<Usage> {
        let dir = self.dirs.at(snapshot.id);
        let path = self.layout.tree(&dir);
        let parent = snapshot.parents.first().map(|p| self.dirs.at(*p));
        let own = tree::measure(&path)
            .and_then(|whole| self.layout.own_use(&dir, parent.as_deref(), whole))
            .context(|| path.display().to_string())?;
        Ok(Usage { inodes: own.inodes, size: own.bytes })
    }

    /// Seals the tree of a snapshot, measures it, sums it up and makes it durable.
    fn make_durable(&self, id: u64, parent: Option<u64>) -> Result<(Usage, Summary)> {
        let dir = self.dirs.at(id);
        self.layout.seal(&dir)?;
        let what = || dir.display().to_string();
        let kept = self.layout.kept(&dir);
        let sum_up = || summary::of_tree(&kept).context(|| kept.display().to_string());
        let failed = || format!("sync {}", dir.display());
        let (whole, summary) = if tree::has_more_than(&kept, SMALL_TREE_NAMES_MAX).context(what)? {
            // Each takes its time, and neither waits for the other.
            beside("sync", || self.sync.sync_big().context(failed), sum_up)?
        } else {
            let summed = sum_up()?;
            self.sync.sync_small(&kept, &dir).context(failed)?;
            summed
        };
        let parent = parent.map(|p| self.dirs.at(p));
        let own = self.layout.own_use(&dir, parent.as_deref(), whole).context(what)?;
        Ok((Usage { inodes: own.inodes, size: own.bytes }, summary))
    }

    /// Lets go of what a committed snapshot needs no more. What fails is done at the next start.
    fn settled(&self, id: u64) -> Result<()> {
        let dir = self.dirs.at(id);
        let drop = |path: &Path| {
            self.trash.take(path, id)?;
            if self.sync_remove { self.trash.empty() } else { self.trash.empty_soon() }
        };
        if let Err(err) = self.layout.settle(&dir, &drop) {
            tracing::warn!(path = %dir.display(), %err, "what a commit leaves is not removed yet");
        }
        Ok(())
    }

    /// Refuses a parent whose tree, or one below it, is being made again.
    fn check_whole(&self, parent: Option<&Snapshot>) -> Result<()> {
        let Some(parent) = parent else { return Ok(()) };
        if self.damaged.any_of(&parent.as_parents()) {
            return Err(Error::unavailable(format!(
                "parent {:?}: its tree or one below it is damaged and has to be unpacked again",
                parent.info.name
            )));
        }
        Ok(())
    }
}

/// A set of snapshot numbers; empty nearly always.
#[derive(Debug, Default)]
struct Numbers(Mutex<HashSet<u64>>);

impl Numbers {
    fn set(&self) -> MutexGuard<'_, HashSet<u64>> {
        // Single operations on the set only, so a panic elsewhere cannot leave it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, id: u64) {
        self.set().insert(id);
    }

    fn remove(&self, id: u64) {
        self.set().remove(&id);
    }

    fn any_of(&self, ids: &[u64]) -> bool {
        let set = self.set();
        !set.is_empty() && ids.iter().any(|id| set.contains(id))
    }

    /// Has `id` in the set for as long as the guard lives.
    fn hold(&self, id: u64) -> Held<'_> {
        self.insert(id);
        Held { numbers: self, id }
    }
}

/// Takes a number out of its set when dropped.
struct Held<'a> {
    numbers: &'a Numbers,
    id: u64,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.numbers.remove(self.id);
    }
}

/// Makes a directory that only root may enter: files in layers carry the owners and modes of the
/// containers', so what keeps others out is this. What is made inside gets no access control list
/// from it: were one set for everything on the host's disk, files of containers would have it.
pub(crate) fn make_private(path: &Path) -> Result<()> {
    let what = || path.display().to_string();
    DirBuilder::new().recursive(true).mode(0o700).create(path).context(what)?;
    match rustix::fs::removexattr(path, "system.posix_acl_default") {
        // None set, or none to be set on this file system.
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Err(err) => Err(io::Error::from(err)).context(what),
    }
}

/// Does `other` on a thread of its own, called `name`, while `own` is done; returns what `own` does.
///
/// # Errors
/// That of either, or that there is no thread to be had.
fn beside<T>(
    name: &str,
    other: impl FnOnce() -> Result<()> + Send,
    own: impl FnOnce() -> Result<T>,
) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name.to_owned());
        let other = thread.spawn_scoped(scope, other).context(|| format!("start thread {name}"))?;
        let done = own();
        other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        done
    })
}

/// Runs `work` to its end even when the caller goes away.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    joined(tokio::spawn(gantry_store::carry(work))).await
}

async fn joined<T>(task: tokio::task::JoinHandle<Result<T>>) -> Result<T> {
    match task.await {
        Ok(result) => result,
        Err(e) => match e.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Error::unavailable("snapshotter: the runtime is shutting down")),
        },
    }
}

/// Implements [`Snapshotter`] for a type around an [`Engine`].
macro_rules! delegate {
    ($type:ty) => {
        #[async_trait]
        impl Snapshotter for $type {
            async fn stat(&self, key: &str) -> Result<Info> {
                self.0.stat(key).await
            }

            async fn update(&self, info: Info, fieldpaths: &[String]) -> Result<Info> {
                self.0.update(info, fieldpaths).await
            }

            async fn usage(&self, key: &str) -> Result<Usage> {
                self.0.usage(key).await
            }

            async fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
                self.0.mounts(key).await
            }

            async fn prepare(
                &self,
                key: &str,
                parent: Option<&str>,
                labels: Labels,
            ) -> Result<Vec<Mount>> {
                self.0.prepare(key, parent, labels).await
            }

            async fn view(
                &self,
                key: &str,
                parent: Option<&str>,
                labels: Labels,
            ) -> Result<Vec<Mount>> {
                self.0.view(key, parent, labels).await
            }

            async fn commit(&self, name: &str, key: &str, options: CommitOptions) -> Result<()> {
                self.0.commit(name, key, options).await
            }

            async fn remove(&self, key: &str) -> Result<()> {
                self.0.remove(key).await
            }

            async fn walk(&self, visit: &mut (dyn FnMut(Info) -> Result<()> + Send)) -> Result<()> {
                self.0.walk(visit).await
            }

            async fn cleanup(&self) -> Result<()> {
                self.0.cleanup().await
            }

            fn upkeep(&self) -> Option<&dyn $crate::Upkeep> {
                self.0.upkeep()
            }

            async fn close(&self) -> Result<()> {
                self.0.close().await
            }
        }
    };
}
pub(crate) use delegate;
