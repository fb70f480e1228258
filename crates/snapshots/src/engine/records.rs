//! Snapshot records in the database.
//!
//! ```text
//! snapshotter/<snapshotter>/snapshot/<name>          the record, protobuf ([`super::codec`])
//! snapshotter/<snapshotter>/child/<parent>/<name>    empty; one for each child
//! snapshotter/<snapshotter>/floor                    see [`Records::floor`]; u64, big endian
//! ```
//! A record carries the numbers of all its parents, so mounts need one read however deep the
//! chain.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::SystemTime;

use gantry_core::{Labels, labels};
use gantry_errdefs::{Error, Result};
use gantry_store::{Key, KvRead, Store, StoreExt as _, Txn};

use super::codec::{decode, encode};
use super::summary::Summary;
use crate::{CommitOptions, Info, Kind, LayerOrigin, Usage};

/// A snapshot as recorded.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// What everyone may know.
    pub(crate) info: Info,
    /// Its number, which names its directory.
    pub(crate) id: u64,
    /// Numbers of its parents, nearest first.
    pub(crate) parents: Vec<u64>,
    /// Disk use, of a committed snapshot.
    pub(super) usage: Usage,
    /// Its tree at the commit.
    pub(super) summary: Option<Summary>,
    /// What was unpacked into it.
    pub(super) origin: Option<LayerOrigin>,
}

/// A snapshot to make.
#[derive(Debug)]
pub(super) struct New {
    pub(super) kind: Kind,
    pub(super) key: String,
    pub(super) parent: Option<String>,
    pub(super) labels: Labels,
}

/// The records of one snapshotter.
pub(super) struct Records {
    store: Arc<dyn Store>,
    keys: Keys,
}

#[derive(Clone)]
struct Keys(Key);

/// # Errors
/// InvalidArgument for an empty name.
pub(super) fn check_name(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::invalid_argument("snapshot key must not be empty"));
    }
    Ok(())
}

impl Records {
    pub(super) fn new(store: Arc<dyn Store>, snapshotter: &str) -> Self {
        Self { store, keys: Keys(Key::new().str("snapshotter").str(snapshotter)) }
    }

    /// The last number that is not ours: on its first use the database takes it from `found`, the
    /// highest number on disk. Those up to it belong to another daemon, or to a database that was
    /// lost; either way they are not ours to remove. Blocks.
    pub(super) fn floor(&self, found: u64) -> Result<u64> {
        let key = self.keys.0.clone().str("floor");
        if let Some(value) = self.store.view()?.get(&key)? {
            let bytes = value.as_slice().try_into();
            return bytes.map(u64::from_be_bytes).map_err(|_| {
                Error::data_loss("the record of the snapshotter's first number is damaged")
            });
        }
        self.update_apart(move |txn| {
            txn.put(&key, found.to_be_bytes());
            Ok(found)
        })
    }

    /// Removes records whose children are removed with them. Blocks.
    pub(super) fn forget(&self, snapshots: Vec<Snapshot>) -> Result<()> {
        let keys = self.keys.clone();
        self.update_apart(move |txn| {
            snapshots.iter().for_each(|snapshot| keys.delete(txn, snapshot));
            Ok(())
        })
    }

    /// A blocking update on a thread of its own, because it must not run on an async one.
    fn update_apart<T: Send + 'static>(
        &self,
        write: impl FnOnce(&mut Txn<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        std::thread::scope(|scope| {
            let update = scope.spawn(|| self.store.update_blocking(write));
            update.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// # Errors
    /// NotFound.
    pub(super) fn get(&self, name: &str) -> Result<Snapshot> {
        self.keys.get(&self.store.view()?, name)
    }

    pub(super) fn walk(&self, visit: &mut dyn FnMut(Snapshot) -> Result<()>) -> Result<()> {
        self.store.view()?.scan(&self.keys.snapshots(), &mut |key, value| {
            let name = Key::str_parts(key)?.pop().unwrap_or_default();
            visit(decode(name, value)?)?;
            Ok(ControlFlow::Continue(()))
        })
    }

    /// Whether `new` could be made now; its parent.
    ///
    /// # Errors
    /// Those of prepare and view.
    pub(super) fn check_new(&self, new: &New) -> Result<Option<Snapshot>> {
        self.keys.check_new(&self.store.view()?, new)
    }

    /// # Errors
    /// As [`Records::check_new`].
    pub(super) async fn create(&self, id: u64, new: New) -> Result<Snapshot> {
        let keys = self.keys.clone();
        self.store
            .update(move |txn| {
                let parent = keys.check_new(txn, &new)?;
                let now = SystemTime::now();
                let snapshot = Snapshot {
                    info: Info {
                        kind: new.kind,
                        name: new.key,
                        parent: new.parent,
                        labels: new.labels,
                        created: now,
                        updated: now,
                    },
                    id,
                    parents: parent.map(|p| p.as_parents()).unwrap_or_default(),
                    usage: Usage::default(),
                    summary: None,
                    origin: None,
                };
                keys.put(txn, &snapshot);
                Ok(snapshot)
            })
            .await
    }

    /// Whether `key` could be committed as `name` now.
    ///
    /// # Errors
    /// Those of commit.
    pub(super) fn check_commit(
        &self,
        name: &str,
        key: &str,
        options: &CommitOptions,
        rebases: bool,
    ) -> Result<Snapshot> {
        let (snapshot, _) =
            self.keys.check_commit(&self.store.view()?, name, key, options, rebases)?;
        Ok(snapshot)
    }

    /// # Errors
    /// As [`Records::check_commit`].
    pub(super) async fn commit(
        &self,
        name: String,
        key: String,
        options: CommitOptions,
        rebases: bool,
        (usage, summary): (Usage, Summary),
    ) -> Result<()> {
        let keys = self.keys.clone();
        self.store
            .update(move |txn| {
                let (mut snapshot, parent) =
                    keys.check_commit(txn, &name, &key, &options, rebases)?;
                keys.delete(txn, &snapshot);
                let now = SystemTime::now();
                if let Some(parent) = parent {
                    snapshot.parents = parent.as_parents();
                    snapshot.info.parent = Some(parent.info.name);
                }
                snapshot.info = Info {
                    kind: Kind::Committed,
                    name,
                    labels: options.labels,
                    created: now,
                    updated: now,
                    ..snapshot.info
                };
                snapshot.usage = usage;
                snapshot.summary = Some(summary);
                snapshot.origin = options.origin;
                keys.put(txn, &snapshot);
                Ok(())
            })
            .await
    }

    /// Notes what the tree of a committed snapshot is like now that it was made again.
    ///
    /// # Errors
    /// NotFound when the snapshot `id` is gone.
    pub(super) async fn remade(
        &self,
        name: String,
        id: u64,
        (usage, summary): (Usage, Summary),
    ) -> Result<()> {
        let keys = self.keys.clone();
        self.store
            .update(move |txn| {
                let mut snapshot = keys.get(txn, &name)?;
                if snapshot.id != id {
                    return Err(Error::not_found(format!("snapshot {name:?} of before")));
                }
                snapshot.usage = usage;
                snapshot.summary = Some(summary);
                keys.put(txn, &snapshot);
                Ok(())
            })
            .await
    }

    /// Removes the record and returns its number.
    ///
    /// # Errors
    /// Those of remove.
    pub(super) async fn remove(&self, name: String) -> Result<u64> {
        let keys = self.keys.clone();
        self.store
            .update(move |txn| {
                let snapshot = keys.get(txn, &name)?;
                if txn.first(&keys.children(&name))?.is_some() {
                    return Err(Error::failed_precondition(format!(
                        "cannot remove snapshot {name:?}: it has children"
                    )));
                }
                keys.delete(txn, &snapshot);
                Ok(snapshot.id)
            })
            .await
    }

    /// # Errors
    /// Those of update.
    pub(super) async fn update(&self, info: Info, fieldpaths: &[String]) -> Result<Snapshot> {
        labels::validate_all(&info.labels)?;
        let fields: Vec<Option<String>> =
            fieldpaths.iter().map(|path| label_field(path)).collect::<Result<_>>()?;
        let keys = self.keys.clone();
        self.store
            .update(move |txn| {
                let mut snapshot = keys.get(txn, &info.name)?;
                merge(&mut snapshot.info.labels, info.labels, &fields);
                snapshot.info.updated = SystemTime::now();
                keys.put(txn, &snapshot);
                Ok(snapshot)
            })
            .await
    }
}

impl Keys {
    fn snapshots(&self) -> Key {
        self.0.clone().str("snapshot")
    }

    fn snapshot(&self, name: &str) -> Key {
        self.snapshots().str(name)
    }

    fn children(&self, parent: &str) -> Key {
        self.0.clone().str("child").str(parent)
    }

    fn get(&self, db: &impl KvRead, name: &str) -> Result<Snapshot> {
        match db.get(&self.snapshot(name))? {
            Some(value) => decode(name.to_owned(), &value),
            None => Err(Error::not_found(format!("snapshot {name:?}"))),
        }
    }

    fn put(&self, txn: &mut Txn<'_>, snapshot: &Snapshot) {
        let name = &snapshot.info.name;
        txn.put(&self.snapshot(name), encode(snapshot));
        if let Some(parent) = &snapshot.info.parent {
            txn.put(&self.children(parent).str(name), Vec::new());
        }
    }

    fn delete(&self, txn: &mut Txn<'_>, snapshot: &Snapshot) {
        let name = &snapshot.info.name;
        txn.delete(&self.snapshot(name));
        if let Some(parent) = &snapshot.info.parent {
            txn.delete(&self.children(parent).str(name));
        }
    }

    /// The committed snapshot `name`.
    fn parent(&self, db: &impl KvRead, name: &str) -> Result<Snapshot> {
        let parent = self.get(db, name).map_err(|e| e.context("parent"))?;
        if parent.info.kind != Kind::Committed {
            return Err(Error::invalid_argument(format!("parent {name:?} is not committed")));
        }
        Ok(parent)
    }

    fn check_free(&self, db: &impl KvRead, name: &str) -> Result<()> {
        if db.has(&self.snapshot(name))? {
            return Err(Error::already_exists(format!("snapshot {name:?}")));
        }
        Ok(())
    }

    fn check_new(&self, db: &impl KvRead, new: &New) -> Result<Option<Snapshot>> {
        labels::validate_all(&new.labels)?;
        let parent = new.parent.as_deref().map(|p| self.parent(db, p)).transpose()?;
        self.check_free(db, &new.key)?;
        Ok(parent)
    }

    /// The snapshot to commit, and its new parent when it is rebased.
    fn check_commit(
        &self,
        db: &impl KvRead,
        name: &str,
        key: &str,
        options: &CommitOptions,
        rebases: bool,
    ) -> Result<(Snapshot, Option<Snapshot>)> {
        labels::validate_all(&options.labels)?;
        let snapshot = self.get(db, key)?;
        if snapshot.info.kind != Kind::Active {
            return Err(Error::failed_precondition(format!(
                "snapshot {key:?}: cannot commit, it is not active"
            )));
        }
        self.check_free(db, name)?;
        let Some(parent) = &options.parent else { return Ok((snapshot, None)) };
        let parent = self.parent(db, parent)?;
        match &snapshot.info.parent {
            Some(same) if *same == parent.info.name => Ok((snapshot, None)),
            None if rebases => Ok((snapshot, Some(parent))),
            None => Err(Error::failed_precondition(format!(
                "snapshot {key:?}: this snapshotter cannot put it on another parent"
            ))),
            Some(other) => Err(Error::failed_precondition(format!(
                "snapshot {key:?}: was prepared on {other:?}, cannot go on {:?}",
                parent.info.name
            ))),
        }
    }
}

impl Snapshot {
    /// The numbers a child of this snapshot has as parents.
    pub(super) fn as_parents(&self) -> Vec<u64> {
        std::iter::once(self.id).chain(self.parents.iter().copied()).collect()
    }
}

/// The label a field path names; `None` for all of them.
fn label_field(path: &str) -> Result<Option<String>> {
    match path.strip_prefix("labels") {
        Some("") => Ok(None),
        Some(rest) if rest.starts_with('.') && rest.len() > 1 => Ok(Some(rest[1..].to_owned())),
        _ => Err(Error::invalid_argument(format!("cannot update {path:?} field on a snapshot"))),
    }
}

fn merge(labels: &mut Labels, mut new: Labels, fields: &[Option<String>]) {
    if fields.is_empty() || fields.contains(&None) {
        new.retain(|_, value| !value.is_empty());
        *labels = new;
        return;
    }
    for field in fields.iter().flatten() {
        match new.remove(field) {
            Some(value) if !value.is_empty() => _ = labels.insert(field.clone(), value),
            _ => _ = labels.remove(field),
        }
    }
}
