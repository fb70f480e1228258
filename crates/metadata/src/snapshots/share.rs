//! One tree for the same layer in several namespaces.

use std::ops::ControlFlow;

use gantry_core::{Context, Digest, Labels, Namespace, labels};
use gantry_errdefs::Result;
use gantry_snapshots::{Kind, label};
use gantry_store::KvRead;

use super::{Snapshots, kind, kind_number};
use crate::db::{check_lease, detached, now};
use crate::keys;
use crate::records::{SnapshotRecord, nanos};
use crate::types::SharingPolicy;

/// A layer that a namespace wants and others may have.
struct Wanted {
    ctx: Context,
    name: String,
    parent: Option<String>,
    diff_id: Digest,
    labels: Labels,
}

impl Snapshots {
    /// Records the layer `name` (its chain ID) on `parent` in the namespace of `ctx`, if another
    /// namespace has the same one, unpacked from a tar with the digest `diff_id` onto the same
    /// tree. It joins the lease of `ctx`; the tree stays until no namespace has it any more. False
    /// when it has to be unpacked: nobody has it, namespaces are isolated from each other
    /// ([`SharingPolicy::Isolated`]), or the snapshotter does not tell what its trees are made of.
    ///
    /// # Errors
    /// NotFound for the parent; the database's.
    pub async fn share(
        &self,
        ctx: &Context,
        name: &str,
        parent: Option<&str>,
        diff_id: &Digest,
        labels: Labels,
    ) -> Result<bool> {
        if !self.shares() {
            return Ok(false);
        }
        labels::validate_all(&labels)?;
        let wanted = Wanted {
            ctx: ctx.clone(),
            name: name.to_owned(),
            parent: parent.map(str::to_owned),
            diff_id: diff_id.clone(),
            labels,
        };
        let this = self.clone();
        // To its end even when the caller goes away half way.
        detached(async move { this.share_now(wanted).await }).await
    }

    /// Whether another namespace has the layer `name` (its chain ID), which [`Self::share`] may take
    /// from it once the parent is there.
    ///
    /// # Errors
    /// The database's.
    pub fn is_elsewhere(&self, ctx: &Context, name: &str) -> Result<bool> {
        Ok(self.shares() && !self.candidates(&self.db.view()?, ctx, name)?.is_empty())
    }

    /// Whether namespaces share layers here at all.
    fn shares(&self) -> bool {
        self.db.policy() != SharingPolicy::Isolated && self.backend.upkeep().is_some()
    }

    async fn share_now(&self, wanted: Wanted) -> Result<bool> {
        let Some(backend_key) = self.shareable(&wanted).await? else { return Ok(false) };
        // The collector may have had it already; from here on it keeps away.
        let _used = self.enter(Some(&backend_key)).await;
        let (this, lease_kind) = (self.clone(), self.lease_kind());
        self.db
            .write(move |tx| {
                let Wanted { ctx, name, parent, labels, .. } = &wanted;
                let still = keys::backend_snapshot(&this.name, &backend_key);
                if tx.txn.first(&still)?.is_none() {
                    return Ok(false);
                }
                if this.find(tx.txn, ctx, name)?.is_none() {
                    // The parent may have gone, or gone and come as another.
                    this.backend_parent(tx.txn, ctx, parent.as_deref())?;
                    let at = nanos(now());
                    let record = SnapshotRecord {
                        backend_key,
                        parent: parent.clone().unwrap_or_default(),
                        created_at: at,
                        updated_at: at,
                        labels: labels.clone(),
                        kind: kind_number(Kind::Committed),
                    };
                    tx.ensure_namespace(&ctx.namespace)?;
                    this.put(tx, &ctx.namespace, name, &record);
                }
                tx.lease_add(ctx, &lease_kind, name)?;
                Ok(true)
            })
            .await
    }

    /// The backend's key of a tree that is what is wanted.
    async fn shareable(&self, wanted: &Wanted) -> Result<Option<String>> {
        let Some(upkeep) = self.backend.upkeep() else { return Ok(None) };
        let (candidates, parent) = {
            let view = self.db.view()?;
            check_lease(&view, &wanted.ctx)?;
            let parent = self.backend_parent(&view, &wanted.ctx, wanted.parent.as_deref())?;
            (self.candidates(&view, &wanted.ctx, &wanted.name)?, parent)
        };
        for backend_key in candidates {
            // Removed meanwhile, most likely.
            let Ok(layer) = upkeep.layer(&backend_key).await else { continue };
            let made_of_it = layer.origin.is_some_and(|o| o.diff_id == wanted.diff_id);
            if made_of_it && layer.parent == parent && !layer.damaged {
                return Ok(Some(backend_key));
            }
        }
        Ok(None)
    }

    /// The backend's keys of what other namespaces have by that name, as a layer.
    fn candidates(&self, view: &impl KvRead, own: &Context, name: &str) -> Result<Vec<String>> {
        let mut namespaces = Vec::new();
        view.scan(&keys::all(keys::Kind::Namespace), &mut |key, _| {
            let [name] = keys::parts(key)?;
            namespaces.push(name);
            Ok(ControlFlow::Continue(()))
        })?;
        let mut found = Vec::new();
        for namespace in namespaces {
            let ctx = Context::new(Namespace::new(namespace)?);
            if ctx.namespace == own.namespace {
                continue;
            }
            let Some(record) = self.find(view, &ctx, name)? else { continue };
            let by_chain = record.labels.get(label::TARGET_REF).is_some_and(|chain| chain == name);
            if by_chain && kind(&record)? == Kind::Committed && !found.contains(&record.backend_key)
            {
                found.push(record.backend_key);
            }
        }
        Ok(found)
    }
}
