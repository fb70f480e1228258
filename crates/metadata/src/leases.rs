//! Leases: what keeps resources alive while nothing else does.

use std::iter::repeat_with;
use std::ops::ControlFlow;
use std::time::UNIX_EPOCH;

use gantry_core::{Context, Digest, Labels, filters, labels};
use gantry_errdefs::{Error, Result};
use gantry_store::KvRead;

use crate::db::{Db, Tx, check_lease, encode, now};
use crate::gc::Node;
use crate::keys::{self, Kind};
use crate::records::{LeaseRecord, decode, nanos};
use crate::types::{Lease, Resource};

/// The leases of the store.
#[derive(Clone, Debug)]
pub struct Leases {
    db: Db,
}

impl Leases {
    pub(crate) fn new(db: Db) -> Self {
        Self { db }
    }

    /// Creates a lease; an empty `id` invents one of the form `<nanoseconds>-<4 characters>`.
    ///
    /// # Errors
    /// InvalidArgument for a bad label; AlreadyExists.
    pub async fn create(&self, ctx: &Context, id: &str, mut labels: Labels) -> Result<Lease> {
        labels::validate_all(&labels)?;
        // An empty value is no label.
        labels.retain(|_, value| !value.is_empty());
        let id = if id.is_empty() { Self::invent_id() } else { id.to_owned() };
        let ctx = ctx.clone();
        self.db
            .write(move |tx| {
                let key = keys::object(Kind::Lease, &ctx.namespace, &id);
                if tx.txn.has(&key)? {
                    return Err(Error::already_exists(format!("lease {id:?}")));
                }
                let record = LeaseRecord { labels, created_at: nanos(now()) };
                tx.ensure_namespace(&ctx.namespace)?;
                tx.txn.put(&key, encode(&record));
                tx.touch(|| Node::lease(&ctx.namespace, &id));
                tx.expires(&record.labels);
                Ok(record.into_lease(id))
            })
            .await
    }

    /// A name for a lease that no other has. Who has to know the name before the lease is made,
    /// to delete it whatever becomes of the making, gives it to [`Self::create`].
    pub fn invent_id() -> String {
        const URL_SAFE: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        const RANDOM_LEN: usize = 4;
        let nanos = now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
        let random: String =
            repeat_with(|| char::from(URL_SAFE[fastrand::usize(..URL_SAFE.len())]))
                .take(RANDOM_LEN)
                .collect();
        format!("{nanos}-{random}")
    }

    /// Checks that the lease of `ctx` is there, if it has one.
    ///
    /// # Errors
    /// NotFound.
    pub fn check(&self, ctx: &Context) -> Result<()> {
        check_lease(&self.db.view()?, ctx)
    }

    /// Deletes a lease; its members become collectable. `synchronous` waits for a full garbage
    /// collection.
    ///
    /// # Errors
    /// NotFound.
    pub async fn delete(&self, ctx: &Context, id: &str, synchronous: bool) -> Result<()> {
        let (ctx, id) = (ctx.clone(), id.to_owned());
        self.db
            .write(move |tx| {
                check(tx.txn, &ctx, &id)?;
                remove(tx, &ctx, &id)
            })
            .await?;
        if synchronous {
            self.db.gc().run().await?;
        }
        Ok(())
    }

    /// The leases that match any of `filters` (fields id, labels), by id.
    ///
    /// # Errors
    /// InvalidArgument for a filter that does not parse.
    pub async fn list(&self, ctx: &Context, filters: &[String]) -> Result<Vec<Lease>> {
        let filter = filters::parse_all(filters)?;
        let mut found = Vec::new();
        let leases = keys::within(Kind::Lease, &ctx.namespace);
        self.db.view()?.scan(&leases, &mut |key, value| {
            let [_, id] = keys::parts(key)?;
            let record: LeaseRecord = decode(value, &format!("lease {id:?}"))?;
            let lease = record.into_lease(id);
            if filter.matches(&lease) {
                found.push(lease);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    /// Adds a resource, which need not exist. Twice is once.
    ///
    /// # Errors
    /// NotFound for the lease; InvalidArgument for a malformed resource; Unimplemented for an
    /// unknown kind.
    pub async fn add_resource(&self, ctx: &Context, id: &str, resource: Resource) -> Result<()> {
        validate(&resource)?;
        let (ctx, id) = (ctx.clone(), id.to_owned());
        self.db
            .write(move |tx| {
                check(tx.txn, &ctx, &id)?;
                tx.lease_add(&ctx.with_lease(id), &resource.kind, &resource.id)
            })
            .await
    }

    /// Takes a resource away; one that is not there is no error.
    ///
    /// # Errors
    /// As [`Leases::add_resource`].
    pub async fn delete_resource(&self, ctx: &Context, id: &str, resource: Resource) -> Result<()> {
        validate(&resource)?;
        let (ctx, id) = (ctx.clone(), id.to_owned());
        self.db
            .write(move |tx| {
                check(tx.txn, &ctx, &id)?;
                tx.lease_drop(&ctx.with_lease(id), &resource.kind, &resource.id);
                tx.dirty();
                Ok(())
            })
            .await
    }

    /// The resources of a lease, by kind and id.
    ///
    /// # Errors
    /// NotFound for the lease.
    pub async fn resources(&self, ctx: &Context, id: &str) -> Result<Vec<Resource>> {
        let view = self.db.view()?;
        check(&view, ctx, id)?;
        let mut found = Vec::new();
        let members = keys::object(Kind::LeaseResource, &ctx.namespace, id);
        view.scan(&members, &mut |key, _| {
            let [_, _, kind, id] = keys::parts(key)?;
            found.push(Resource { kind, id });
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }
}

/// Takes a lease out with its list of members, as a delete or its expiry does.
pub(crate) fn remove(tx: &mut Tx<'_, '_>, ctx: &Context, id: &str) -> Result<()> {
    tx.txn.delete(&keys::object(Kind::Lease, &ctx.namespace, id));
    tx.txn.delete_prefix(&keys::object(Kind::LeaseResource, &ctx.namespace, id))?;
    tx.dirty();
    Ok(())
}

fn check(read: &impl KvRead, ctx: &Context, id: &str) -> Result<()> {
    if read.has(&keys::object(Kind::Lease, &ctx.namespace, id))? {
        Ok(())
    } else {
        Err(Error::not_found(format!("lease {id:?}")))
    }
}

fn validate(resource: &Resource) -> Result<()> {
    let bad = |why: &str| {
        let Resource { kind, id } = resource;
        Error::invalid_argument(format!("lease resource {kind:?} {id:?}: {why}"))
    };
    if resource.id.is_empty() {
        return Err(bad("id must not be empty"));
    }
    match resource.kind.split('/').collect::<Vec<_>>().as_slice() {
        ["content"] => resource.id.parse::<Digest>().map(drop),
        ["ingests" | "images"] => Ok(()),
        ["snapshots", name] if !name.is_empty() => Ok(()),
        ["content" | "ingests" | "images", ..] => Err(bad("type takes no name after a slash")),
        ["snapshots", ..] => Err(bad("type must be snapshots/<snapshotter>")),
        _ => Err(Error::unimplemented(format!("lease resource type {:?}", resource.kind))),
    }
}
