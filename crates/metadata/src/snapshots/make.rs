//! Making snapshots: in the backend first, then the record; undone in the backend when the record
//! can't be written.

use gantry_core::{Context, Labels, labels};
use gantry_errdefs::{Error, Result};
use gantry_mount::Mount;
use gantry_snapshots::{CommitOptions, Kind, LayerOrigin, label};
use gantry_store::{KvRead, relaxed};

use super::{Snapshots, inflight_name, inherited, kind, kind_number, missing, renamed};
use crate::db::{check_lease, detached, now};
use crate::event::Event;
use crate::gc::remove_backend_snapshots;
use crate::inflight::Guard;
use crate::records::{SnapshotRecord, nanos};

/// One prepare or view.
struct Make {
    ctx: Context,
    kind: Kind,
    key: String,
    parent: Option<String>,
    labels: Labels,
}

impl Snapshots {
    pub(super) async fn make(
        &self,
        ctx: &Context,
        kind: Kind,
        key: &str,
        parent: Option<&str>,
        mut labels: Labels,
    ) -> Result<Vec<Mount>> {
        labels::validate_all(&labels)?;
        if key.is_empty() {
            return Err(Error::invalid_argument("snapshot key must not be empty"));
        }
        labels.retain(|_, value| !value.is_empty());
        let make = Make {
            ctx: ctx.clone(),
            kind,
            key: key.to_owned(),
            parent: parent.filter(|p| !p.is_empty()).map(str::to_owned),
            labels,
        };
        let this = self.clone();
        // To its end even when the caller goes away half way.
        detached(async move { this.make_now(make).await }).await
    }

    async fn make_now(&self, make: Make) -> Result<Vec<Mount>> {
        let view = self.db.view()?;
        let ctx = &make.ctx;
        check_lease(&view, ctx)?;
        if let Some(target) = make.labels.get(label::TARGET_REF)
            && self.find(&view, ctx, target)?.is_some()
        {
            self.lease_target(ctx, target).await?;
            return Err(target_exists(target));
        }
        if self.find(&view, ctx, &make.key)?.is_some() {
            return Err(taken(&make.key));
        }
        let parent = self.backend_parent(&view, ctx, make.parent.as_deref())?;
        drop(view);
        // Kept from before the last look at the parent's record until the child has one.
        let _parent_used = self.enter(parent.as_deref()).await;
        let (backend_key, used) = self.backend_name(ctx, &make.key).await?;
        let labels = inherited(&make.labels);
        // Relaxed: our record comes right after, in the same database if the backend uses it.
        let made = if make.kind == Kind::View {
            relaxed(self.backend.view(&backend_key, parent.as_deref(), labels)).await
        } else {
            relaxed(self.backend.prepare(&backend_key, parent.as_deref(), labels)).await
        };
        let mounts = match made {
            Ok(mounts) => mounts,
            Err(err) => {
                if err.is_already_exists()
                    && let Some(target) = make.labels.get(label::TARGET_REF)
                {
                    return Err(self.adopt(&make, target, parent).await?);
                }
                return Err(self.in_clients_words(err, &backend_key, &make, parent.as_deref()));
            }
        };
        if let Err(err) = self.record(make, &backend_key, parent).await {
            self.undo(backend_key, used).await;
            return Err(err);
        }
        Ok(mounts)
    }

    async fn record(&self, make: Make, backend_key: &str, parent: Option<String>) -> Result<()> {
        let (this, lease_kind) = (self.clone(), self.lease_kind());
        let backend_key = backend_key.to_owned();
        self.db
            .write(move |tx| {
                let Make { ctx, kind, key, parent: parent_key, labels } = make;
                if this.find(tx.txn, &ctx, &key)?.is_some() {
                    return Err(taken(&key));
                }
                // The parent may have gone, or gone and come as another.
                if this.backend_parent(tx.txn, &ctx, parent_key.as_deref())? != parent {
                    return Err(missing_parent(&parent_key.unwrap_or_default()));
                }
                let at = nanos(now());
                let record = SnapshotRecord {
                    backend_key,
                    parent: parent_key.unwrap_or_default(),
                    created_at: at,
                    updated_at: at,
                    labels,
                    kind: kind_number(kind),
                };
                tx.ensure_namespace(&ctx.namespace)?;
                this.put(tx, &ctx.namespace, &key, &record);
                tx.lease_add(&ctx, &lease_kind, &key)?;
                if kind == Kind::Active {
                    let (parent, snapshotter) = (record.parent, this.name.to_string());
                    let event = Event::SnapshotPrepare { key, parent, snapshotter };
                    tx.emit(&ctx.namespace, event);
                }
                Ok(())
            })
            .await
    }

    /// Records the snapshot that a remote snapshotter has at hand under the target's name, and
    /// returns the AlreadyExists that tells the client so.
    async fn adopt(&self, make: &Make, target: &str, parent: Option<String>) -> Result<Error> {
        let mut found = None;
        self.backend
            .walk(&mut |info| {
                if info.kind == Kind::Committed
                    && info.parent == parent
                    && info.labels.get(label::TARGET_REF).is_some_and(|t| t == target)
                {
                    found = Some(info);
                }
                Ok(())
            })
            .await?;
        let Some(found) = found else {
            return Ok(Error::not_found(format!(
                "target snapshot {target:?}, which snapshotter {} said it has",
                self.name
            )));
        };
        let (this, lease_kind) = (self.clone(), self.lease_kind());
        let (ctx, name) = (make.ctx.clone(), target.to_owned());
        let (parent, labels) = (make.parent.clone().unwrap_or_default(), make.labels.clone());
        let _used = self.enter(Some(&found.name)).await;
        self.db
            .write(move |tx| {
                if this.find(tx.txn, &ctx, &name)?.is_none() {
                    let at = nanos(now());
                    let record = SnapshotRecord {
                        backend_key: found.name,
                        parent,
                        created_at: at,
                        updated_at: at,
                        labels,
                        kind: kind_number(Kind::Committed),
                    };
                    tx.ensure_namespace(&ctx.namespace)?;
                    this.put(tx, &ctx.namespace, &name, &record);
                }
                tx.lease_add(&ctx, &lease_kind, &name)
            })
            .await?;
        Ok(target_exists(target))
    }

    pub(super) async fn commit_as(
        &self,
        ctx: &Context,
        name: &str,
        key: &str,
        mut options: CommitOptions,
    ) -> Result<()> {
        labels::validate_all(&options.labels)?;
        if name.is_empty() {
            return Err(Error::invalid_argument("snapshot name must not be empty"));
        }
        options.labels.retain(|_, value| !value.is_empty());
        options.parent = options.parent.filter(|p| !p.is_empty());
        let (this, ctx) = (self.clone(), ctx.clone());
        let (name, key) = (name.to_owned(), key.to_owned());
        // To its end even when the caller goes away half way.
        detached(async move { this.commit_now(ctx, name, key, options).await }).await
    }

    async fn commit_now(
        &self,
        ctx: Context,
        name: String,
        key: String,
        mut options: CommitOptions,
    ) -> Result<()> {
        if name == key {
            self.read(&self.db.view()?, &ctx, &key)?;
            return Err(taken(&name));
        }
        // What happens between the look and the record could not be undone in the backend: it is
        // made not to happen, by doing one thing at a time to a name.
        let _busy = self.busy(&ctx, &name, &key).await;
        let view = self.db.view()?;
        check_lease(&view, &ctx)?;
        let record = self.read(&view, &ctx, &key)?;
        if kind(&record)? != Kind::Active {
            let text = format!("snapshot {key:?} is not active");
            return Err(Error::failed_precondition(text));
        }
        if self.find(&view, &ctx, &name)?.is_some() {
            return Err(taken(&name));
        }
        let parent = self.backend_parent(&view, &ctx, options.parent.as_deref())?;
        drop(view);
        let _parent_used = self.enter(parent.as_deref()).await;
        let _key_used = self.enter(Some(&record.backend_key)).await;
        let (backend_name, used) = self.backend_name(&ctx, &name).await?;
        let noted = self.applied(&record.backend_key).await;
        let backend_options = CommitOptions {
            labels: inherited(&options.labels),
            parent,
            origin: options.origin.take().or(noted),
        };
        relaxed(self.backend.commit(&backend_name, &record.backend_key, backend_options))
            .await
            .map_err(|err| renamed(err, &key, &record))?;
        let recorded = self.record_commit(ctx, name, key, backend_name.clone(), options).await;
        if recorded.is_err() {
            // The lease ended meanwhile, or the collector has taken the active one.
            self.undo(backend_name, used).await;
        }
        recorded
    }

    /// Records a commit that the backend has done.
    async fn record_commit(
        &self,
        ctx: Context,
        name: String,
        key: String,
        backend_name: String,
        options: CommitOptions,
    ) -> Result<()> {
        let (this, lease_kind) = (self.clone(), self.lease_kind());
        self.db
            .write(move |tx| {
                let old = this.read(tx.txn, &ctx, &key)?;
                if this.find(tx.txn, &ctx, &name)?.is_some() {
                    return Err(taken(&name));
                }
                super::forget(tx, &ctx.namespace, &this.name, &key, &old);
                let at = nanos(now());
                let record = SnapshotRecord {
                    backend_key: backend_name,
                    parent: options.parent.unwrap_or(old.parent),
                    created_at: at,
                    updated_at: at,
                    labels: options.labels,
                    kind: kind_number(Kind::Committed),
                };
                this.put(tx, &ctx.namespace, &name, &record);
                tx.lease_add(&ctx, &lease_kind, &name)?;
                tx.lease_drop(&ctx, &lease_kind, &key);
                let snapshotter = this.name.to_string();
                tx.emit(&ctx.namespace, Event::SnapshotCommit { key, name, snapshotter });
                tx.dirty();
                Ok(())
            })
            .await
    }

    /// The layer that a client has had unpacked into an active snapshot, if it was one.
    async fn applied(&self, backend_key: &str) -> Option<LayerOrigin> {
        let applied = &self.db.shared.applied;
        if applied.is_empty() {
            return None;
        }
        applied.take(&self.backend.mounts(backend_key).await.ok()?)
    }

    /// The backend's key of a parent, which must be committed.
    pub(super) fn backend_parent(
        &self,
        read: &impl KvRead,
        ctx: &Context,
        parent: Option<&str>,
    ) -> Result<Option<String>> {
        let Some(parent) = parent else { return Ok(None) };
        let record = self.find(read, ctx, parent)?.ok_or_else(|| missing_parent(parent))?;
        if kind(&record)? != Kind::Committed {
            let text = format!("parent snapshot {parent:?} is not committed");
            return Err(Error::invalid_argument(text));
        }
        Ok(Some(record.backend_key))
    }

    /// A new backend key for `key`, kept from the collector while the guard lives.
    async fn backend_name(&self, ctx: &Context, key: &str) -> Result<(String, Guard)> {
        let name = format!("{}/{}/{key}", ctx.namespace, self.db.next_number().await?);
        let used = self.db.shared.inflight.enter(&inflight_name(&self.name, &name)).await;
        Ok((name, used))
    }

    pub(super) async fn enter(&self, backend_key: Option<&str>) -> Option<Guard> {
        let name = inflight_name(&self.name, backend_key?);
        Some(self.db.shared.inflight.enter(&name).await)
    }

    /// Holds the names of a commit. One that comes while another works on a name waits, and is then
    /// told what became of it: clients that unpack the same layer at once take AlreadyExists for
    /// success.
    async fn busy(&self, ctx: &Context, name: &str, key: &str) -> (Guard, Guard) {
        let held = |text: &str| format!("commit {} {} {text}", self.name, ctx.namespace);
        // In one order, so that two commits never wait for each other.
        let (first, second) = if name < key { (name, key) } else { (key, name) };
        let inflight = &self.db.shared.inflight;
        let first = inflight.exclusive(&held(first)).await;
        (first, inflight.exclusive(&held(second)).await)
    }

    async fn lease_target(&self, ctx: &Context, target: &str) -> Result<()> {
        if ctx.lease.is_none() {
            return Ok(());
        }
        let (ctx, target, lease_kind) = (ctx.clone(), target.to_owned(), self.lease_kind());
        self.db.write(move |tx| tx.lease_add(&ctx, &lease_kind, &target)).await
    }

    /// Removes what the backend has made, if no record names it; what stays is left to
    /// reconciliation.
    async fn undo(&self, backend_key: String, used: Guard) {
        drop(used);
        remove_backend_snapshots(&self.db, &self.name, vec![backend_key]).await;
    }

    fn in_clients_words(
        &self,
        err: Error,
        backend_key: &str,
        make: &Make,
        parent: Option<&str>,
    ) -> Error {
        let mut text = err.message().replace(backend_key, &make.key);
        if let (Some(backend), Some(own)) = (parent, &make.parent) {
            text = text.replace(backend, own);
        }
        Error::new(err.class(), text).with_source(err)
    }
}

fn taken(key: &str) -> Error {
    Error::already_exists(format!("snapshot {key:?}"))
}

fn target_exists(target: &str) -> Error {
    Error::already_exists(format!("target snapshot {target:?}"))
}

fn missing_parent(parent: &str) -> Error {
    Error::not_found(format!("parent {}", missing(parent).message()))
}
