//! Sandboxes: records of pod-like groups.

use std::ops::ControlFlow;

use gantry_core::fieldmask::{self, Path};
use gantry_core::{Context, filters, identifiers, labels};
use gantry_errdefs::{Error, Result};
use gantry_store::KvRead;

use crate::db::{Db, encode, now};
use crate::gc::Node;
use crate::keys::{self, Kind};
use crate::records::{SandboxRecord, decode};
use crate::types::Sandbox;

/// The sandboxes of the store.
#[derive(Clone, Debug)]
pub struct Sandboxes {
    db: Db,
}

impl Sandboxes {
    pub(crate) fn new(db: Db) -> Self {
        Self { db }
    }

    /// The sandbox `id`.
    ///
    /// # Errors
    /// NotFound.
    pub async fn get(&self, ctx: &Context, id: &str) -> Result<Sandbox> {
        read(&self.db.view()?, ctx, id)
    }

    /// The sandboxes that match any of `filters` (fields id, labels), by id.
    ///
    /// # Errors
    /// InvalidArgument for a filter that does not parse.
    pub async fn list(&self, ctx: &Context, filters: &[String]) -> Result<Vec<Sandbox>> {
        let filter = filters::parse_all(filters)?;
        let mut found = Vec::new();
        let sandboxes = keys::within(Kind::Sandbox, &ctx.namespace);
        self.db.view()?.scan(&sandboxes, &mut |key, value| {
            let [_, id] = keys::parts(key)?;
            let sandbox = parse(value, id)?;
            if filter.matches(&sandbox) {
                found.push(sandbox);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    /// Creates a sandbox; times are set here.
    ///
    /// # Errors
    /// InvalidArgument for a bad id or label; AlreadyExists.
    pub async fn create(&self, ctx: &Context, mut sandbox: Sandbox) -> Result<Sandbox> {
        validate(&sandbox)?;
        sandbox.labels.retain(|_, value| !value.is_empty());
        let ctx = ctx.clone();
        self.db
            .write(move |tx| {
                let key = keys::object(Kind::Sandbox, &ctx.namespace, &sandbox.id);
                if tx.txn.has(&key)? {
                    return Err(Error::already_exists(format!("sandbox {:?}", sandbox.id)));
                }
                sandbox.created_at = now();
                sandbox.updated_at = sandbox.created_at;
                tx.ensure_namespace(&ctx.namespace)?;
                tx.txn.put(&key, encode(&SandboxRecord::from(sandbox.clone())));
                tx.touch(|| Node::sandbox(&ctx.namespace, &sandbox.id));
                Ok(sandbox)
            })
            .await
    }

    /// Changes the sandbox `update.id`. `fieldpaths` are `labels`, `labels.<key>`, `extensions`,
    /// `extensions.<key>`, `runtime` (its name can't change) and `spec`; none replaces all of
    /// these.
    ///
    /// # Errors
    /// NotFound; InvalidArgument for another field path, a bad label or another runtime name.
    pub async fn update(
        &self,
        ctx: &Context,
        update: Sandbox,
        fieldpaths: &[String],
    ) -> Result<Sandbox> {
        let (ctx, fieldpaths) = (ctx.clone(), fieldpaths.to_vec());
        self.db
            .write(move |tx| {
                let mut sandbox = read(tx.txn, &ctx, &update.id)?;
                apply(&mut sandbox, update, &fieldpaths)?;
                validate(&sandbox)?;
                sandbox.updated_at = now();
                let key = keys::object(Kind::Sandbox, &ctx.namespace, &sandbox.id);
                tx.txn.put(&key, encode(&SandboxRecord::from(sandbox.clone())));
                tx.touch(|| Node::sandbox(&ctx.namespace, &sandbox.id));
                Ok(sandbox)
            })
            .await
    }

    /// Deletes the record of the sandbox `id`.
    ///
    /// # Errors
    /// NotFound.
    pub async fn delete(&self, ctx: &Context, id: &str) -> Result<()> {
        let (ctx, id) = (ctx.clone(), id.to_owned());
        self.db
            .write(move |tx| {
                let key = keys::object(Kind::Sandbox, &ctx.namespace, &id);
                if !tx.txn.has(&key)? {
                    return Err(missing(&id));
                }
                tx.txn.delete(&key);
                tx.dirty();
                Ok(())
            })
            .await
    }
}

fn missing(id: &str) -> Error {
    Error::not_found(format!("sandbox {id:?}"))
}

fn parse(value: &[u8], id: String) -> Result<Sandbox> {
    let record: SandboxRecord = decode(value, &format!("sandbox {id:?}"))?;
    Ok(record.into_sandbox(id))
}

fn read(read: &impl KvRead, ctx: &Context, id: &str) -> Result<Sandbox> {
    match read.get(&keys::object(Kind::Sandbox, &ctx.namespace, id))? {
        Some(value) => parse(&value, id.to_owned()),
        None => Err(missing(id)),
    }
}

fn validate(sandbox: &Sandbox) -> Result<()> {
    identifiers::validate("sandbox", &sandbox.id)?;
    labels::validate_all(&sandbox.labels)
}

fn apply(sandbox: &mut Sandbox, update: Sandbox, fieldpaths: &[String]) -> Result<()> {
    let what = format!("sandbox {:?}", sandbox.id);
    let maps = ["labels", "extensions"];
    let mask = if fieldpaths.is_empty() {
        ["labels", "extensions", "runtime", "spec"].map(Path::Field).to_vec()
    } else {
        fieldmask::parse(&what, fieldpaths, &["runtime", "spec"], &maps)?
    };
    fieldmask::merge_map(&mut sandbox.labels, "labels", &mask, &update.labels);
    for path in &mask {
        match path {
            Path::Field("extensions") => sandbox.extensions.clone_from(&update.extensions),
            Path::Key { field: "extensions", key } => match update.extensions.get(*key) {
                Some(value) => drop(sandbox.extensions.insert((*key).to_owned(), value.clone())),
                None => drop(sandbox.extensions.remove(*key)),
            },
            Path::Field("runtime") => {
                if update.runtime.name != sandbox.runtime.name {
                    let text = format!("{what}: field runtime.name is immutable");
                    return Err(Error::invalid_argument(text));
                }
                sandbox.runtime.clone_from(&update.runtime);
            }
            Path::Field("spec") => sandbox.spec.clone_from(&update.spec),
            _ => {}
        }
    }
    Ok(())
}
